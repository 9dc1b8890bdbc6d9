"""NRRD, MHA and MHD through SimpleITK, with a check that all their data are there.

SimpleITK fills the missing part of a truncated file with zeros; the lengths are therefore compared first.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_diffae.data.formats.scan import Header, Scan, as_float32, check_affine, check_budget, problem
from monai_diffae.errors import DiffAEError

sitk.ProcessObject.SetGlobalWarningDisplay(False)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(path: Path) -> Scan:
    """Read a file: ``[C, X, Y, Z]``, or ``[C, H, W]`` for one that has two dimensions.

    Raises:
        ScanError: the file is damaged, incomplete, or its contents cannot be a scan.
    """
    _check_spacing(path)
    reader = opened(path)
    _check_complete(path, reader)
    try:
        with silent_stderr():
            image = reader.Execute()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    return Scan(to_array(path, image), to_affine(image))


def read_header(path: Path) -> Header:
    """Sizes and affine, without the voxels; of those that are not compressed the length is compared, too."""
    _check_spacing(path)
    reader = opened(path)
    _check_complete(path, reader, decompress=False)
    size = reader.GetSize()[:3]
    return Header(size[::-1] if len(size) == 2 else size, to_affine(reader))


def opened(path: Path) -> sitk.ImageFileReader:
    """A reader that has read, and found usable, the file's header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with silent_stderr():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    sizes = reader.GetSize()
    check_budget(path, sizes, reader.GetNumberOfComponents())
    if len(sizes) not in (2, 3):
        if len(sizes) < 2 or any(n > 1 for n in sizes[3:]):
            raise problem(path, f"a {len(sizes)}D file, expected 3D", "save its 3D volumes as files of their own")
        reader.SetExtractIndex([0] * len(sizes))
        reader.SetExtractSize([*sizes[:3], *[0] * (len(sizes) - 3)])
    _itemsize(path, reader)
    check_affine(path, to_affine(reader))
    return reader


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """ITK's MetaIO writes its complaints straight to the process's standard error; ours say the same in one line."""
    try:
        saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no standard error
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def to_array(path: Path, image: sitk.Image) -> NDArray[np.float32]:
    """An image's values: ``[C, X, Y, Z]``, or ``[C, H, W]`` in two dimensions."""
    array = sitk.GetArrayViewFromImage(image)  # [z, y, x] or [y, x], then the components
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    axes = (2, 1, 0) if image.GetDimension() == 3 else (0, 1)
    return np.ascontiguousarray(as_float32(path, array.transpose(-1 % array.ndim, *axes)))


def to_affine(image: sitk.Image | sitk.ImageFileReader) -> NDArray[np.float64]:
    """ITK's geometry (LPS, indices x, y, z) as an affine in RAS; indices row, column for two dimensions."""
    dims = image.GetDimension()
    n = min(dims, 3)
    direction = np.asarray(image.GetDirection(), np.float64).reshape(dims, dims)[:n, :n]
    affine = np.eye(4)
    affine[:n, :n] = direction * np.asarray(image.GetSpacing()[:n])
    affine[:n, 3] = image.GetOrigin()[:n]
    return LPS_TO_RAS @ (affine if n == 3 else affine[:, [1, 0, 2, 3]])


def unreadable(path: Path, error: RuntimeError) -> DiffAEError:
    """ITK's many lines as one of ours."""
    text = str(error).lower()
    if "spacing" in text:
        return problem(
            path, "its voxel spacing is zero, negative or not a number", "export it again with a valid spacing"
        )
    if "determinant" in text or "cosine" in text or "orientation" in text:
        return problem(path, "its affine is singular (two axes point the same way)", "repair its direction")
    if "transfer syntax" in text or "codec" in text or "compress" in text:
        return problem(path, "its compression cannot be decoded", "export it uncompressed")
    return problem(path, "it is damaged or not of the format that its name says", "copy or export it again")


def _itemsize(path: Path, reader: sitk.ImageFileReader) -> int:
    """Bytes of one component."""
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    match = re.fullmatch(r"(?:vector of )?(\d+)-bit .*", kind)
    if match is None:
        raise problem(path, f"its voxels are of the type '{kind}'", "save one real number a voxel")
    return int(match[1]) // 8


def _check_spacing(path: Path) -> None:
    """Refuse declared spacings that are not positive: ITK takes their absolute values."""
    with open(path, "rb") as stream:
        fields = _text_header(stream)
    declared = f"{fields.get('elementspacing', '')} {fields.get('spacings', '')}".split()
    for text in declared:
        if re.fullmatch(r"-.*|[+]?0*[.]?0*(e.*)?", text, re.IGNORECASE):
            shown = " x ".join(declared)
            raise problem(path, f"its voxel spacing is {shown} mm", "export it again with a valid spacing")


def _check_complete(path: Path, reader: sitk.ImageFileReader, decompress: bool = True) -> None:
    """Compare the bytes that are there with those that the header declares; ``decompress`` those that are packed."""
    expected = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * _itemsize(path, reader)
    with open(path, "rb") as stream:
        fields = _text_header(stream)
        beside = fields.get("elementdatafile", "LOCAL")
        packed = fields.get("compresseddata", "").lower() == "true" or fields.get("encoding", "").lower() in (
            "gz",
            "gzip",
        )
        if (
            "data file" in fields
            or "datafile" in fields
            or fields.get("encoding", "raw").lower() not in ("raw", "gz", "gzip")
            or (packed and not decompress)
        ):
            return  # detached or textual: ITK itself notices
        if beside.upper() == "LOCAL":
            found = _length(path, stream, packed, "encoding" in fields)
        else:
            data = path.parent / Path(beside).name
            if " " in beside or "%" in beside or not data.is_file():
                return  # a list of files, or a missing one: ITK itself notices
            with open(data, "rb") as raw:
                found = _length(path, raw, packed, False)
    if found < expected:
        raise problem(path, f"its data end early ({found} of {expected} bytes)", "copy it again")


def _text_header(stream: BinaryIO) -> dict[str, str]:
    """The ``key = value`` lines of MHA and the ``key: value`` lines of NRRD; the stream then stands at the data."""
    fields: dict[str, str] = {}
    for _ in range(1000):
        line = stream.readline(65536)
        text = line.decode("latin-1").strip()
        if not text:
            break  # NRRD: a blank line ends the header
        key, _, value = text.partition("=" if re.match(r"\w+\s*=", text) and ":=" not in text else ":")
        fields[key.strip().lower()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    return fields


def _length(path: Path, stream: BinaryIO, packed: bool, as_gzip: bool) -> int:
    """Bytes from here to the end, after decompression; a damaged stream is refused."""
    start = stream.tell()
    if not packed:
        return stream.seek(0, 2) - start
    unpack = zlib.decompressobj(31 if as_gzip else 15)
    length = 0
    try:
        while not unpack.eof and (chunk := stream.read(1 << 20)):
            length += len(unpack.decompress(chunk))
    except (zlib.error, gzip.BadGzipFile) as error:
        raise problem(path, "its compressed data are damaged", "copy it again") from error
    if not unpack.eof:
        raise problem(path, "its compressed data end early", "copy it again")
    return length
