"""Read NIfTI-1 and NIfTI-2, in one file or as a .hdr/.img pair, plain or gzipped; write NIfTI like another file.

Files are read to their end, because only there gzip compares its checksum and notices a flipped bit or a missing end.
(nibabel stops at the last voxel and accepts 9 of 10 such files.)
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.formats.nifti_extensions import check_extensions
from monai_diffae.data.formats.nifti_orientation import doubts
from monai_diffae.data.formats.scan import (
    Doubt,
    Header,
    Scan,
    as_float32,
    check_affine,
    check_budget,
    check_packed,
    problem,
)
from monai_diffae.errors import DiffAEError

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_SLACK = 64 * 1024**2  # bytes allowed before the voxels, for header extensions, and after them, for appended data
_PAIRS = {".hdr": ".img", ".hdr.gz": ".img.gz"}


@dataclass(frozen=True)
class _Layout:
    """The voxels' type, shape and affine; ``start`` is their first byte in the file that holds them."""

    header: nib.Nifti1Header
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    start: int
    doubts: tuple[Doubt, ...]

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * int(self.header.get_data_dtype().itemsize)


def read(path: Path) -> Scan:
    """Read a NIfTI file in its own voxel order: array ``[1, X, Y, Z]``, or ``[1, X, Y, 1]`` in two dimensions.

    Header extensions are checked and skipped.

    Raises:
        ScanError: the file is damaged, is not NIfTI, or its content cannot be a scan.
    """
    with _open(path) as stream:
        layout = _layout(path, stream)
        with _open_voxels(path, stream) as (file, voxels):
            _check_stored(file, voxels, layout)
            voxels.read(layout.start - voxels.tell())
            body = voxels.read(layout.end - layout.start)
            _check_length(file, voxels.tell(), layout.end)
            _read_to_end(file, voxels)
    values = as_float32(path, np.frombuffer(body, layout.header.get_data_dtype()), _scaling(layout.header))
    array = values.reshape(layout.shape, order="F")[None]
    return Scan(array, layout.affine, header=layout.header, doubts=layout.doubts)


def read_header(path: Path) -> Header:
    """Read size ``(X, Y, Z)`` and affine from the header, and check the length of files that are not compressed."""
    with _open(path) as stream:
        layout = _layout(path, stream)
        with _open_voxels(path, stream) as (file, voxels):
            _check_stored(file, voxels, layout)
        return Header(layout.shape, layout.affine, layout.doubts)


def voxel_file(path: Path) -> Path:
    """The file that holds the voxels: the .img file beside a .hdr file, else the file itself.

    Example:
        >>> voxel_file(Path("scans/a.hdr.gz")).name, voxel_file(Path("scans/a.nii")).name
        ('a.img.gz', 'a.nii')
    """
    for header, voxels in _PAIRS.items():
        if path.name.lower().endswith(header):
            stem, suffix = path.name[: -len(header)], path.name[-len(header) :]
            return path.with_name(stem + (voxels.upper() if suffix.isupper() else voxels))
    return path


def write_like(path: Path, array: NDArray[np.float32], header: nib.Nifti1Header, description: str = "") -> int:
    """Write a volume ``[X, Y, Z]`` with the size, affine, codes, units, type and scaling of another file.

    For integer types, values are rounded and clipped. Texts in the header are not copied, because they may contain
    names; ``descrip`` gets a description of its own.

    Returns:
        The number of clipped voxels.
    """
    header = header.copy()
    for text in ("descrip", "aux_file", "intent_name", "db_name"):
        if text in header:  # NIfTI-2 has no db_name
            header[text] = b""
    header["descrip"] = description.encode()
    slope, inter = header.get_slope_inter()
    dtype, num_clipped = header.get_data_dtype(), 0
    if dtype.kind in "iu":
        scaled = np.round((array.astype(np.float64) - (inter or 0.0)) / (slope or 1.0))
        limits = np.iinfo(dtype)
        num_clipped = int(((scaled < limits.min) | (scaled > limits.max)).sum())
        # float64 cannot represent the largest 64-bit integers
        highest = np.nextafter(float(limits.max), 0) if dtype.itemsize == 8 else limits.max
        stored = np.clip(scaled, limits.min, highest).astype(dtype)
    else:
        stored = array.astype(dtype)
        slope, inter = None, None
    image_class = nib.Nifti2Image if int(header["sizeof_hdr"]) == 540 else nib.Nifti1Image
    image = image_class(stored.reshape(header.get_data_shape()), header.get_best_affine(), header)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return num_clipped


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file's decompressed stream, and turn errors in it into one line."""
    try:
        with open(path, "rb") as plain:
            is_gzipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if is_gzipped:
                with gzip.GzipFile(fileobj=plain) as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield plain
    except DiffAEError:
        raise
    except EOFError as error:
        raise problem(path, "the compressed file ends early", "copy it again") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise problem(
            path, "the compressed file is damaged (its checksum or stream is wrong)", "copy it again"
        ) from error
    except OSError:
        raise
    except Exception as error:  # random bytes in a header can fail anywhere in nibabel
        raise problem(path, f"its NIfTI header cannot be used ({error})", "export it again") from error


@contextmanager
def _open_voxels(path: Path, stream: BinaryIO) -> Iterator[tuple[Path, BinaryIO]]:
    """Open the file with the voxels; if it is the file of the header, use its stream."""
    file = voxel_file(path)
    if file == path:
        yield file, stream
    elif file.is_file():
        with _open(file) as voxels:
            yield file, voxels
    else:
        raise problem(file, "this file is missing beside its .hdr file", "copy both files")


def _layout(path: Path, stream: BinaryIO) -> _Layout:
    """Read the file up to the voxels, or a .hdr file to its end."""
    header, has_extensions = _header(path, stream)
    shape, affine, geometry_doubts = _geometry(path, header)
    declared, after_header = int(header.get_data_offset()), int(header["sizeof_hdr"]) + 4
    is_pair = voxel_file(path) != path
    if declared > after_header + _SLACK or (is_pair and declared < 0):
        raise problem(path, f"its header says that the voxels begin at byte {declared}", "export it again")
    if is_pair:
        layout = _Layout(header, shape, affine, declared, geometry_doubts)
        content = stream.read(_SLACK + 1)
        if len(content) > _SLACK:
            raise problem(path, "it has far more data than a header", "export it again")
    else:
        layout = _Layout(header, shape, affine, max(declared, after_header), geometry_doubts)
        if has_extensions and declared < after_header:
            raise problem(path, "it has a header extension, but no position of the voxels", "export it again")
        content = stream.read(layout.start - after_header)
        _check_length(path, after_header + len(content), layout.start)
    if has_extensions:
        check_extensions(path, content, header.endianness)
    return layout


def _header(path: Path, stream: BinaryIO) -> tuple[nib.Nifti1Header, bool]:
    """Read the header, and whether the four bytes after it announce extensions."""
    raw = stream.read(352)
    sizes = (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
    size = next((s for s in sizes if s in _HEADERS), None)
    if size is None:
        raise problem(path, f"this is not a NIfTI file{_guess_type(raw)}", "download or export it again")
    raw += stream.read(size + 4 - len(raw))
    if len(raw) < size:
        raise problem(path, "the file ends within its header", "copy it again")
    header = _HEADERS[size](raw[:size], check=False)
    _check_magic(path, bytes(header["magic"]).rstrip(b"\0")[:3])
    return header, raw[size : size + 1] not in (b"", b"\0")


def _check_magic(path: Path, magic: bytes) -> None:
    if voxel_file(path) == path:
        if magic not in (b"n+1", b"n+2"):
            raise problem(path, "its magic is not that of a single NIfTI file", "convert it to .nii.gz")
    elif magic not in (b"ni1", b"ni2"):
        raise problem(
            path, "it is not the header of a NIfTI .hdr/.img pair (perhaps of Analyze 7.5)", "convert it to .nii.gz"
        )


def _guess_type(raw: bytes) -> str:
    start = raw.lstrip()[:40].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return " but a web page"
    if start.startswith(b"version https://git-lfs"):
        return " but a git-lfs pointer"
    return ""


def _geometry(path: Path, header: nib.Nifti1Header) -> tuple[tuple[int, ...], NDArray[np.float64], tuple[Doubt, ...]]:
    """The size along three axes, the affine in mm, and doubts about it."""
    dims = [int(n) for n in header["dim"]]
    if not 1 < dims[0] <= 7:
        raise problem(path, f"its header declares {dims[0]} dimensions", "export it again as a 3D volume")
    shape = dims[1 : 1 + dims[0]]
    check_budget(path, shape)
    if any(n > 1 for n in shape[3:]):
        sizes = " x ".join(map(str, shape))
        raise problem(path, f"a {len(shape)}D file ({sizes}); expected 3D", "save its 3D volumes as files of their own")
    _check_dtype(path, header)
    _check_scaling(path, header)
    spacing = [float(v) for v in header["pixdim"][1 : 1 + min(dims[0], 3)]]
    if not all(math.isfinite(v) and v > 0 for v in spacing):
        spacing_text = " x ".join(f"{v:g}" for v in spacing)
        raise problem(path, f"its voxel spacing (pixdim) is {spacing_text} mm", "export it again with a valid spacing")
    if dims[0] == 2 and not header["pixdim"][3] > 0:
        header = header.copy()
        header["pixdim"][3] = 1.0
    affine = np.array(header.get_best_affine(), np.float64)
    affine[:3] *= _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    check_affine(path, affine)
    return tuple((*shape, 1)[:3]), affine, tuple(doubts(header, affine))


def _check_dtype(path: Path, header: nib.Nifti1Header) -> None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iufb":
        kind = "complex numbers" if dtype.kind == "c" else "colours or other records"
        raise problem(path, f"its voxels are {kind}, not plain numbers", "save one real number per voxel")


def _check_scaling(path: Path, header: nib.Nifti1Header) -> None:
    """Refuse a scaling that is not finite; nibabel would ignore it. A slope of 0 or NaN means that there is none."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope) or not (slope == 0 or math.isnan(slope) or math.isfinite(inter)):
        wrong = f"its scaling is not finite (scl_slope {slope:g}, scl_inter {inter:g})"
        raise problem(path, wrong, "export it again, or set the right scaling")


def _check_length(path: Path, length: int, expected: int) -> None:
    if length < expected:
        raise problem(path, f"the file ends early ({length} of {expected} bytes)", "copy it again")


def _check_stored(path: Path, stream: BinaryIO, layout: _Layout) -> None:
    """Compare the size of the file that holds the voxels with its header."""
    if isinstance(stream, gzip.GzipFile):
        check_packed(path, layout.end, path.stat().st_size)
    else:
        _check_length(path, path.stat().st_size, layout.end)


def _scaling(header: nib.Nifti1Header) -> tuple[float, float] | None:
    """Slope and intercept; None: the values are as stored."""
    slope, inter = header.get_slope_inter()
    return None if slope is None or (slope == 1 and not inter) else (slope, inter or 0.0)


def _read_to_end(path: Path, stream: BinaryIO) -> None:
    num_extra = 0
    while chunk := stream.read(1 << 20):
        num_extra += len(chunk)
        if num_extra > _SLACK:
            raise problem(path, "it has far more data than its header declares", "export it again")
