"""Read NRRD, MHA and MHD with SimpleITK, after a check that the files are complete; write NRRD.

SimpleITK fills the missing part of a truncated file with zeros, so lengths are compared first.
"""

import contextlib
import math
import os
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_diffae.data.formats import scan
from monai_diffae.errors import ConfigError, MachineError, problem

SUFFIXES = (".nrrd", ".mha", ".mhd")

sitk.ProcessObject.SetGlobalWarningDisplay(False)

_STDERR = threading.RLock()
_LONGEST_HEADER = 1024**2
_VOXELS_NAMED = re.compile(rb"(?i)(?:ElementDataFile\s*[=:]|data ?file\s*:)\s*([^\r\n]*)")  # also text like it
_SLACK = 64 * 1024**2  # bytes allowed after the voxels

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(path: Path) -> scan.Scan:
    """Read a file: ``[C, X, Y, Z]``, or ``[C, H, W]`` in two dimensions."""
    reader = _open(path)
    with one_line_errors(path):
        image = reader.Execute()
    return scan.Scan(to_array(path, image), to_affine(image))


def read_header(path: Path) -> scan.Header:
    """Read size and affine, without the voxels, and check the length of files that are not compressed."""
    reader = _open(path, decompress=False)
    size = reader.GetSize()[:3]
    return scan.Header(
        size[::-1] if len(size) == 2 else size, to_affine(reader), channels=reader.GetNumberOfComponents()
    )


def _open(path: Path, decompress: bool = True) -> sitk.ImageFileReader:
    """A reader that has read the header, after all checks that come before the voxels."""
    check_data_files(path)
    with open(path, "rb") as stream:
        fields, start = _text_header(stream), stream.tell()
    declared = f"{fields.get('elementspacing', '')} {fields.get('spacings', '').lower().replace('nan', '')}"
    try:
        spacing_mm = [float(text) for text in declared.split()]
    except ValueError:  # ITK notices
        spacing_mm = []
    scan.check_spacing(path, spacing_mm)  # ITK would take the absolute value
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with one_line_errors(path):
        reader.ReadImageInformation()
    sizes = reader.GetSize()
    scan.check_budget(path, sizes, reader.GetNumberOfComponents())
    if len(sizes) > 3:
        reader.SetExtractIndex([0] * len(sizes))
        reader.SetExtractSize([*sizes[:3], *[0] * (len(sizes) - 3)])
    _check_complete(path, fields, start, _num_bytes(path, reader), decompress)
    scan.check_affine(path, to_affine(reader))
    return reader


@contextlib.contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Raise an error of ITK, whose own text has many lines and names of folders, as one line."""
    try:
        with silent_stderr():
            yield
    except RuntimeError as error:
        wrong = "it is damaged, or not in the format that its name says"
        raise problem(path, wrong, "copy or export it again") from error


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Silence the process's standard error, to which ITK's MetaIO writes what our errors say; one thread at a time."""
    with _STDERR:
        try:
            saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        except OSError:  # there is no standard error
            yield
            return
        try:
            os.dup2(devnull, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(devnull)


def to_array(path: Path, image: sitk.Image) -> NDArray[np.float32]:
    """Convert an image to an array: ``[C, X, Y, Z]``, or ``[C, H, W]`` in two dimensions."""
    array = sitk.GetArrayViewFromImage(image)  # [z, y, x] or [y, x], followed by the components
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    axes = (2, 1, 0) if image.GetDimension() == 3 else (0, 1)
    return scan.as_float32(path, array.transpose(-1 % array.ndim, *axes))


def to_affine(image: sitk.Image | sitk.ImageFileReader) -> scan.Floats:
    """Convert ITK's geometry (LPS, indices x, y, z) to an affine in RAS+; in 2D, with indices row and column."""
    dims = image.GetDimension()
    n = min(dims, 3)
    direction = np.asarray(image.GetDirection(), np.float64).reshape(dims, dims)[:n, :n]
    affine = np.eye(4)
    affine[:n, :n] = direction * np.asarray(image.GetSpacing()[:n])
    affine[:n, 3] = image.GetOrigin()[:n]
    return LPS_TO_RAS @ (affine if n == 3 else affine[:, [1, 0, 2, 3]])


def to_image(path: Path, array: NDArray[np.generic], affine: scan.Floats) -> sitk.Image:
    """Convert a volume ``[C, X, Y, Z]`` with an affine in RAS+ to an image, whose geometry is in LPS."""
    voxels = array.transpose(3, 2, 1, 0) if len(array) > 1 else array[0].transpose(2, 1, 0)
    try:
        image = sitk.GetImageFromArray(np.ascontiguousarray(voxels), isVector=len(array) > 1)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{path.name}: NRRD cannot hold {array.dtype}; use float32 or an integer type") from error
    lps, spacing = LPS_TO_RAS @ affine, np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def write_nrrd(path: Path, image: sitk.Image, name: str) -> None:
    """Write an image as compressed NRRD; ``name`` is the file's in the error of a full disk."""
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.SetImageIO("NrrdImageIO")
    writer.UseCompressionOn()
    try:
        with silent_stderr():
            writer.Execute(image)
    except RuntimeError as error:
        # ITK does not say why
        raise MachineError(f"{name}: cannot be written; free space or choose another folder") from error


def _num_bytes(path: Path, reader: sitk.ImageFileReader) -> int:
    """Bytes of the voxels that the header declares."""
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    match = re.fullmatch(r"(?:vector of )?(\d+)-bit .*", kind)
    if match is None:
        raise problem(path, f"its voxels are of the type '{kind}'", "save one real number per voxel")
    return math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * int(match[1]) // 8


def check_data_files(path: Path) -> None:
    """Check that a header names no file of another folder, which ITK would read, and nothing at which ITK crashes."""
    with open(path, "rb") as stream:
        header = stream.read(_LONGEST_HEADER)
    is_nrrd = path.name.lower().endswith(".nrrd")
    is_cut = len(header) == _LONGEST_HEADER and not re.search(rb"\n\r?\n" if is_nrrd else rb"ElementDataFile", header)
    if is_nrrd:
        lines = re.split(rb"[\r\n]", re.split(rb"\n\r?\n", header, maxsplit=1)[0])
        is_long = any(len(line) > 900 and not re.match(rb"#|[^:]*:=", line) for line in lines)
    else:
        is_long = re.search(rb"Name\s*[=:][^\n]{255}", header) is not None  # MetaIO has room for 254
    if is_cut or is_long:
        raise problem(path, "its header has a line that is too long, or does not end", "copy or export it again")
    if not is_nrrd and re.search(rb"NDims(?!\s*[=:]\s*[1-9]\s)", header):  # MetaIO has room for 10, and checks nothing
        raise problem(path, "its number of dimensions (NDims) is not 1 to 9", "copy or export it again")
    for match in _VOXELS_NAMED.finditer(header):
        if re.search(rb"[/\\]", match[1]):
            raise problem(path, "its voxels are in a file of another folder", "put that file beside it")
        if re.match(rb"LIST(\s|$)|[^\r\n]*%\d*[a-zA-Z]", match[1]):
            raise problem(path, "its voxels are in several files", "save it as one file, .nrrd or .mha")


def _check_complete(path: Path, fields: dict[str, str], start: int, expected: int, decompress: bool) -> None:
    """Compare the number of bytes with the header; compressed files are checked if ``decompress`` is set."""
    names = (fields.get(key) for key in ("elementdatafile", "data file", "datafile"))
    name = next(filter(None, names), "LOCAL")
    data, start = (path, start) if name.upper() == "LOCAL" else (path.parent / Path(name).name, 0)
    if not data.is_file():
        raise problem(path, "the file with its voxels is missing", "copy both files")
    scan.check_packed(path, expected, data.stat().st_size)
    encoding = fields.get("encoding", "raw").lower()
    is_packed = fields.get("compresseddata", "").lower() == "true" or encoding in ("gz", "gzip")
    if encoding not in ("raw", "gz", "gzip") or (is_packed and not decompress):
        return  # ITK notices a missing end of text
    length = data.stat().st_size - start
    if is_packed:
        with open(data, "rb") as stream:
            stream.seek(start)
            length = _unpacked_length(path, stream, fields, expected)
    if length < expected:
        raise problem(path, f"its data end early ({length} of {expected} bytes)", "copy it again")


def _text_header(stream: BinaryIO) -> dict[str, str]:
    """Read the ``key = value`` lines of MHA, or ``key: value`` lines of NRRD, up to the start of the data."""
    fields: dict[str, str] = {}
    for _ in range(1000):
        text = stream.readline(65536).decode("latin-1").strip()
        if not text:
            break  # a blank line ends the header of NRRD
        key, _, value = text.partition("=" if re.match(r"\w+\s*=", text) and ":=" not in text else ":")
        fields[key.strip().lower()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    return fields


def _unpacked_length(path: Path, stream: BinaryIO, fields: dict[str, str], expected: int) -> int:
    """Count the bytes from here to the end, after decompression: of gzip in NRRD, of zlib in MHA."""
    unpack = zlib.decompressobj(31 if "encoding" in fields else 15)
    start, length = stream.tell(), 0
    try:
        while not unpack.eof and (chunk := unpack.unconsumed_tail or stream.read(1 << 20)):
            length += len(unpack.decompress(chunk, 1 << 20))
            if length > expected + _SLACK:
                raise problem(path, "it has far more data than its header declares", "export it again")
        length += len(unpack.flush())
    except zlib.error as error:
        raise problem(path, "its compressed data are damaged", "copy it again") from error
    if not unpack.eof:
        raise problem(path, "its compressed data end early", "copy it again")
    packed = stream.tell() - start - len(unpack.unused_data)
    declared = fields.get("compresseddatasize", "0" if start else str(packed))
    if "encoding" not in fields and not (declared.isdigit() and int(declared) >= packed):
        # ITK would leave the other voxels as they are in memory
        raise problem(path, "its CompressedDataSize is not that of its data", "copy or export it again")
    return length
