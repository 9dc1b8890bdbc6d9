"""Read NRRD, MHA and MHD with SimpleITK, after a check that the files are complete; write NRRD.

SimpleITK fills the missing part of a truncated file with zeros, so lengths are compared first.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from monai_diffae.data.formats.scan import Header, Scan, as_float32, check_affine, check_budget, check_packed, problem
from monai_diffae.errors import ConfigError, DiffAEError, MachineError

sitk.ProcessObject.SetGlobalWarningDisplay(False)

_STDERR = threading.RLock()

_SUFFIXES = (".nrrd", ".mha", ".mhd")
_LONGEST_HEADER = 1024**2
_SLACK = 64 * 1024**2  # bytes allowed after the voxels
_NRRD_DATA_FILE = re.compile(rb"data ?file\s*:\s*([^\r\n]*)", re.IGNORECASE)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(path: Path) -> Scan:
    """Read a file: ``[C, X, Y, Z]``, or ``[C, H, W]`` in two dimensions.

    Raises:
        ScanError: the file is damaged or incomplete, or its content cannot be a scan.
    """
    _check_spacing(path)
    reader = open_header(path)
    _check_complete(path, reader)
    try:
        with silent_stderr():
            image = reader.Execute()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    return Scan(to_array(path, image), to_affine(image))


def read_header(path: Path) -> Header:
    """Read size and affine, without the voxels, and check the length of files that are not compressed."""
    _check_spacing(path)
    reader = open_header(path)
    _check_complete(path, reader, decompress=False)
    size = reader.GetSize()[:3]
    return Header(size[::-1] if len(size) == 2 else size, to_affine(reader), channels=reader.GetNumberOfComponents())


def open_header(path: Path, copy: Path | None = None) -> sitk.ImageFileReader:
    """Read and check a file's header, and return the reader, which may read a ``copy`` of the file instead."""
    if path.name.lower().endswith(_SUFFIXES):
        check_data_files(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(copy or path))
    try:
        with silent_stderr():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    sizes = reader.GetSize()
    check_budget(path, sizes, reader.GetNumberOfComponents())
    if len(sizes) not in (2, 3):
        if len(sizes) < 2 or any(n > 1 for n in sizes[3:]):
            raise problem(path, f"a {len(sizes)}D file; expected 3D", "save its 3D volumes as files of their own")
        reader.SetExtractIndex([0] * len(sizes))
        reader.SetExtractSize([*sizes[:3], *[0] * (len(sizes) - 3)])
    _itemsize(path, reader)
    check_affine(path, to_affine(reader))
    return reader


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Silence the process's standard error: ITK's MetaIO writes to it what our errors say in one line.

    One thread at a time: a second one would take the silence for the standard error, and restore it.
    """
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
    return as_float32(path, array.transpose(-1 % array.ndim, *axes))


def to_affine(image: sitk.Image | sitk.ImageFileReader) -> NDArray[np.float64]:
    """Convert ITK's geometry (LPS, indices x, y, z) to an affine in RAS+; in 2D, with indices row and column."""
    dims = image.GetDimension()
    n = min(dims, 3)
    direction = np.asarray(image.GetDirection(), np.float64).reshape(dims, dims)[:n, :n]
    affine = np.eye(4)
    affine[:n, :n] = direction * np.asarray(image.GetSpacing()[:n])
    affine[:n, 3] = image.GetOrigin()[:n]
    return LPS_TO_RAS @ (affine if n == 3 else affine[:, [1, 0, 2, 3]])


def to_image(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> sitk.Image:
    """Convert a volume ``[C, X, Y, Z]`` with an affine in RAS+ to an image, whose geometry is in LPS.

    Args:
        path: the file to be written, for the message.
        array: the volume.
        affine: 4x4, from voxel indices to mm.

    Raises:
        ConfigError: ITK has no such data type.
    """
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


def unreadable(path: Path, error: RuntimeError) -> DiffAEError:
    """Convert an error of ITK, which has many lines, to one line."""
    text = str(error).lower()
    if "spacing" in text:
        return problem(
            path, "its voxel spacing is zero, negative or not a number", "export it again with a valid spacing"
        )
    if "determinant" in text or "cosine" in text or "orientation" in text:
        return problem(path, "its affine is singular (two axes point the same way)", "repair its direction")
    if "transfer syntax" in text or "codec" in text or "compress" in text:
        return problem(path, f"its compression{_compression(path)} cannot be decoded", "export it uncompressed")
    return problem(path, "it is damaged, or not in the format that its name says", "copy or export it again")


def _compression(path: Path) -> str:
    """The name of a DICOM file's transfer syntax, in brackets; nothing if it has none."""
    try:
        syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
    except (InvalidDicomError, AttributeError, OSError):
        return ""
    return f" ({syntax.name})"


def _itemsize(path: Path, reader: sitk.ImageFileReader) -> int:
    """Bytes of one component."""
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    match = re.fullmatch(r"(?:vector of )?(\d+)-bit .*", kind)
    if match is None:
        raise problem(path, f"its voxels are of the type '{kind}'", "save one real number per voxel")
    return int(match[1]) // 8


def _check_spacing(path: Path) -> None:
    """Raise an error if a spacing is not positive: ITK would take its absolute value."""
    with open(path, "rb") as stream:
        fields = _text_header(stream)
    declared = f"{fields.get('elementspacing', '')} {fields.get('spacings', '')}".split()
    for text in declared:
        if re.fullmatch(r"-.*|[+]?0*[.]?0*(e.*)?", text, re.IGNORECASE):
            spacing = " x ".join(declared)
            raise problem(path, f"its voxel spacing is {spacing} mm", "export it again with a valid spacing")


def check_data_files(path: Path) -> None:
    """Check that a header names no file with voxels in another folder: ITK would read any file of the machine.

    Also check what ITK would crash with: NDims and Name of MHA and MHD, and the lengths of lines of NRRD.

    The search is independent of lines and of the order of fields, so that no header can hide a name from it.

    Args:
        path: a file in one of the formats NRRD, MHA and MHD.

    Raises:
        ScanError: it names such a file, ITK would crash with it, or its header does not end.
    """
    with open(path, "rb") as stream:
        header = stream.read(_LONGEST_HEADER)
    is_nrrd = path.name.lower().endswith(".nrrd")
    if len(header) == _LONGEST_HEADER and re.search(rb"\n\r?\n" if is_nrrd else rb"ElementDataFile", header) is None:
        raise problem(path, "its header does not end", "export it again")
    lines = re.split(rb"[\r\n]", re.split(rb"\n\r?\n", header, maxsplit=1)[0])
    if is_nrrd and any(len(line) > 900 and not re.match(rb"#|[^:]*:=", line) for line in lines):  # ITK would crash
        raise problem(path, "its header has a line that is too long, or does not end", "copy or export it again")
    if not is_nrrd and re.search(rb"NDims(?!\s*[=:]\s*[1-9]\s)", header):  # MetaIO has room for 10, and checks nothing
        raise problem(path, "its number of dimensions (NDims) is not 1 to 9", "copy or export it again")
    if not is_nrrd and re.search(rb"Name\s*[=:][^\n]{255}", header):  # MetaIO has room for 254
        raise problem(path, "its Name is too long", "copy or export it again")
    for match in re.finditer(_NRRD_DATA_FILE if is_nrrd else rb"ElementDataFile\s*[=:]\s*([^\r\n]*)", header):
        names = header[match.start(1) :] if match[1].upper().startswith(b"LIST") else match[1]
        if re.search(rb"[/\\]", names):
            raise problem(path, "its voxels are in a file of another folder", "put that file beside it")


def _check_complete(path: Path, reader: sitk.ImageFileReader, decompress: bool = True) -> None:
    """Compare the number of bytes with the header; compressed files are checked if ``decompress`` is set."""
    expected = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * _itemsize(path, reader)
    with open(path, "rb") as stream:
        fields = _text_header(stream)
        names = (fields.get(key) for key in ("elementdatafile", "data file", "datafile"))
        data_file = next(filter(None, names), "LOCAL")
        check_packed(path, expected, _stored_bytes(path, data_file))
        is_compressed = fields.get("compresseddata", "").lower() == "true" or fields.get("encoding", "").lower() in (
            "gz",
            "gzip",
        )
        if fields.get("encoding", "raw").lower() not in ("raw", "gz", "gzip") or (is_compressed and not decompress):
            return  # ITK notices a missing end of text
        if data_file.upper() == "LOCAL":
            length = _length(path, stream, is_compressed, "encoding" in fields, expected)
        else:
            data = path.parent / Path(data_file).name
            if " " in data_file or "%" in data_file or not data.is_file():
                return  # several files, or a missing one, which ITK notices
            with open(data, "rb") as raw:
                length = _length(path, raw, is_compressed, "encoding" in fields, expected)
    if length < expected:
        raise problem(path, f"its data end early ({length} of {expected} bytes)", "copy it again")


def _stored_bytes(path: Path, data_file: str) -> int:
    """The size of the file or files that a header and its voxels are in; a pattern or list may name any beside it."""
    named = path if data_file.upper() == "LOCAL" else path.parent / Path(data_file).name
    files = [named] if named.is_file() else [file for file in path.parent.iterdir() if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _text_header(stream: BinaryIO) -> dict[str, str]:
    """Read the ``key = value`` lines of MHA, or ``key: value`` lines of NRRD, up to the start of the data."""
    fields: dict[str, str] = {}
    for _ in range(1000):
        line = stream.readline(65536)
        text = line.decode("latin-1").strip()
        if not text:
            break  # a blank line ends the header of NRRD
        key, _, value = text.partition("=" if re.match(r"\w+\s*=", text) and ":=" not in text else ":")
        fields[key.strip().lower()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    return fields


def _length(path: Path, stream: BinaryIO, is_compressed: bool, as_gzip: bool, expected: int) -> int:
    """Count the bytes from here to the end, after decompression.

    Raises:
        ScanError: the stream is damaged, or has far more bytes than ``expected``.
    """
    start = stream.tell()
    if not is_compressed:
        return stream.seek(0, 2) - start
    unpack = zlib.decompressobj(31 if as_gzip else 15)
    length = 0
    try:
        while not unpack.eof and (chunk := unpack.unconsumed_tail or stream.read(1 << 20)):
            length += len(unpack.decompress(chunk, 1 << 20))
            if length > expected + _SLACK:
                raise problem(path, "it has far more data than its header declares", "export it again")
        length += len(unpack.flush())
    except (zlib.error, gzip.BadGzipFile) as error:
        raise problem(path, "its compressed data are damaged", "copy it again") from error
    if not unpack.eof:
        raise problem(path, "its compressed data end early", "copy it again")
    return length
