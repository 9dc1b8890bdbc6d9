"""Read NIfTI-1 and NIfTI-2, in one file or as a .hdr/.img pair, and FreeSurfer's MGH; plain or gzipped.

Files are read to their end, because only there gzip compares its checksum and notices a flipped bit or a missing end.
(nibabel stops at the last voxel and accepts 9 of 10 such files.)
"""

import gzip
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.freesurfer import mghformat

from monai_diffae.data.fingerprints import CHANNEL, voxel_file
from monai_diffae.data.formats import scan
from monai_diffae.errors import counted, problem

_FREESURFER = (".mgz", ".mgh")
SUFFIXES = (".nii.gz", ".nii", ".hdr.gz", ".hdr", *_FREESURFER)
"""A pair is read by its .hdr file."""

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_SLACK = 64 * 1024**2  # bytes allowed before the voxels, for header extensions, and after them, for appended data
_MOST_CHANNELS = 12  # of a 4D file; one with more volumes is a time series
_SAME_SPACING = 0.02  # relative difference of two spacings that are the same
_SHEARED = 0.01  # cosine of two axes


@dataclass(frozen=True)
class _Layout:
    """The voxels' type, shape and affine; ``start`` is their first byte in the file that holds them."""

    header: nib.Nifti1Header
    shape: tuple[int, ...]  # X, Y, Z and the number of channels
    affine: scan.Floats
    start: int
    doubts: tuple[scan.Doubt, ...]

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * int(self.header.get_data_dtype().itemsize)


def read(path: Path, channel: int | None = None) -> scan.Scan:
    """Read a file, or one of its channels, in its own voxel order: ``[C, X, Y, Z]``, in two dimensions with Z = 1."""
    with _open_checked(path, channel) as (layout, file, voxels):
        voxels.read(layout.start - voxels.tell())
        body = voxels.read(layout.end - layout.start)
        _check_length(file, voxels.tell(), layout.end)
        num_extra = 0
        while chunk := voxels.read(1 << 20):
            num_extra += len(chunk)
            if num_extra > _SLACK:
                raise problem(file, "it has far more data than its header declares", "export it again")
    slope, inter = layout.header.get_slope_inter()
    is_scaled = slope is not None and (slope != 1 or inter)
    stored = np.frombuffer(body, layout.header.get_data_dtype())
    if channel is not None:
        stored = np.split(stored, layout.shape[3])[channel]
    values = scan.as_float32(path, stored, (slope, inter or 0.0) if is_scaled else None)
    array = np.moveaxis(values.reshape((*layout.shape[:3], -1), order="F"), -1, 0)
    return scan.Scan(array, layout.affine, header=layout.header, doubts=layout.doubts)


def read_header(path: Path, channel: int | None = None) -> scan.Header:
    """Read size ``(X, Y, Z)`` and affine from the header, and check the length of files that are not compressed."""
    with _open_checked(path, channel) as (layout, _, _):
        return scan.Header(layout.shape[:3], layout.affine, layout.doubts, layout.shape[3] if channel is None else 1)


@contextmanager
def _open_checked(path: Path, channel: int | None) -> Iterator[tuple[_Layout, Path, BinaryIO]]:
    """The layout, and the file with the voxels, opened, after a comparison of its size with the layout."""
    file = Path(voxel_file(path))
    if not file.is_file():
        raise problem(file, "this file is missing beside its .hdr file", "copy both files")
    with ExitStack() as stack:
        stream = stack.enter_context(_open(path))
        layout = _layout(path, stream, channel)
        voxels = stream if file == path else stack.enter_context(_open(file))
        if isinstance(voxels, gzip.GzipFile):
            scan.check_packed(file, layout.end, file.stat().st_size)
        else:
            _check_length(file, file.stat().st_size, layout.end)
        yield layout, file, voxels


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    with open(path, "rb") as plain:
        is_gzipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if is_gzipped else plain
        except EOFError as error:
            raise problem(path, "the compressed file ends early", "copy it again") from error


def _layout(path: Path, stream: BinaryIO, channel: int | None) -> _Layout:
    if path.name.lower().endswith(_FREESURFER):
        return _freesurfer_layout(path, stream, channel)
    header, has_extensions = _header(path, stream)
    shape, affine = _geometry(path, header, channel)
    declared, after_header = int(header.get_data_offset()), int(header["sizeof_hdr"]) + 4
    is_pair = voxel_file(path) != str(path)
    start = declared if is_pair else max(declared, after_header)
    if not 0 <= start <= after_header + _SLACK or (has_extensions and not is_pair and declared < after_header):
        raise problem(path, f"its header says that the voxels begin at byte {declared}", "export it again")
    return _Layout(header, shape, affine, start, tuple(_doubts(header, affine)))


def _freesurfer_layout(path: Path, stream: BinaryIO, channel: int | None) -> _Layout:
    """The layout of an MGH file, whose header becomes one of NIfTI."""
    raw = stream.read(284)
    if raw[:4] != b"\0\0\0\1" or raw[8:16] == raw[:4] * 2:  # of size N x 1 x 1, as surfaces are
        raise problem(path, f"this is not a FreeSurfer volume{_guess_type(raw)}", "download or export it again")
    volume = mghformat.MGHHeader(raw)
    header = nib.Nifti1Header.from_header(volume).as_byteswapped(">")
    header.set_sform(volume.get_affine(), "scanner")
    header.set_xyzt_units("mm")
    wrong = "it has no orientation (goodRASFlag is 0)"
    doubt = scan.Doubt("orientation", wrong, "coronal slices of 1 mm are assumed", "set it from the original scan")
    return _Layout(header, *_geometry(path, header, channel), len(raw), () if raw[29] else (doubt,))


def _header(path: Path, stream: BinaryIO) -> tuple[nib.Nifti1Header, bool]:
    """Read the header, and whether the four bytes after it announce extensions."""
    raw = stream.read(352)
    sizes = (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
    size = next((s for s in sizes if s in _HEADERS), None)
    if size is None:
        raise problem(path, f"this is not a NIfTI file{_guess_type(raw)}", "download or export it again")
    raw += stream.read(size + 4 - len(raw))
    _check_length(path, len(raw), size)
    header = _HEADERS[size](raw[:size], check=False)
    is_pair = voxel_file(path) != str(path)
    if bytes(header["magic"])[:3] not in ((b"ni1", b"ni2") if is_pair else (b"n+1", b"n+2")):
        kind = "the header of a NIfTI .hdr/.img pair (perhaps of Analyze 7.5)" if is_pair else "a single NIfTI file"
        raise problem(path, f"its magic is not that of {kind}", "convert it to .nii.gz")
    return header, raw[size : size + 1] not in (b"", b"\0")


def _guess_type(raw: bytes) -> str:
    start = raw.lstrip()[:40].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return " but a web page"
    return " but a git-lfs pointer" if start.startswith(b"version https://git-lfs") else ""


def _geometry(path: Path, header: nib.Nifti1Header, channel: int | None) -> tuple[tuple[int, ...], scan.Floats]:
    """The size along three axes, the number of channels, and the affine in mm."""
    dims = [int(n) for n in header["dim"]]
    if not 1 < dims[0] <= 7:
        raise problem(path, f"its header declares {dims[0]} dimensions", "export it again as a 3D volume")
    shape = dims[1 : 1 + dims[0]]
    num_channels = math.prod(shape[3:])
    if channel is None and num_channels > _MOST_CHANNELS:
        wrong = f"a time series of {num_channels} volumes"
        raise problem(path, wrong, f"choose one of them, with {CHANNEL}0 after the file's name")
    if channel is not None and channel >= num_channels:
        raise problem(path, f"it has {counted(num_channels, 'channel')}, so none with number {channel}", "count from 0")
    scan.check_budget(path, shape[:3], num_channels if channel is None else 1)
    if header.get_data_dtype().kind not in "iufb":
        raise problem(path, "its voxels are complex numbers, colours or records", "save one real number per voxel")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope) or not (slope == 0 or math.isnan(slope) or math.isfinite(inter)):  # nibabel would ignore it
        wrong = f"its scaling is not finite (scl_slope {slope:g}, scl_inter {inter:g})"
        raise problem(path, wrong, "export it again, or set the right scaling")
    scan.check_spacing(path, [float(v) for v in header["pixdim"][1 : 1 + min(dims[0], 3)]])
    if dims[0] == 2 and not header["pixdim"][3] > 0:
        header = header.copy()
        header["pixdim"][3] = 1.0
    affine = np.array(header.get_best_affine(), np.float64)
    affine[:3] *= _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    scan.check_affine(path, affine)
    return (*(*shape, 1)[:3], num_channels), affine


def _doubts(header: nib.Nifti1Header, affine: scan.Floats) -> Iterator[scan.Doubt]:
    """What is doubtful about the geometry; the sform is used if its code is above 0, else the qform (as in nibabel)."""
    has_sform, has_qform = (int(header[f"{name}_code"]) > 0 for name in ("sform", "qform"))
    if not has_sform and not has_qform:
        wrong = "it has no orientation (the codes of sform and qform are 0)"
        yield scan.Doubt("orientation", wrong, "left and right are a guess", "set its sform from the original scan")
    if has_sform and has_qform and _is_mirrored(header):
        wrong = "its sform and qform disagree about left and right"
        yield scan.Doubt("orientation", wrong, "the sform is used", "convert it again from the original scan")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > _SHEARED:
        yield scan.Doubt("sheared", "its affine is sheared", "distances are approximate", "resample it to a plain grid")
    elif has_sform and _has_other_spacing(header):
        wrong = "its voxel spacing (pixdim) is not that of its sform"
        yield scan.Doubt("spacing", wrong, "the sform is used", "convert it again from the original scan")


def _is_mirrored(header: nib.Nifti1Header) -> bool:
    """Whether one of sform and qform is the mirror image of the other; False if the qform's numbers are no rotation."""
    try:
        qform = header.get_qform()
    except ValueError:
        return False
    return bool(np.linalg.det(header.get_sform()[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0)


def _has_other_spacing(header: nib.Nifti1Header) -> bool:
    sides = int(header["dim"][0])
    spacing = np.linalg.norm(header.get_sform()[:3, :3], axis=0)[:sides]
    declared = np.asarray(header["pixdim"][1:4], np.float64)[:sides]
    return not np.allclose(spacing, declared, rtol=_SAME_SPACING)


def _check_length(path: Path, length: int, expected: int) -> None:
    if length < expected:
        raise problem(path, f"the file ends early ({length} of {expected} bytes)", "copy it again")
