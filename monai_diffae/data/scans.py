"""Read a scan file or DICOM series as an array with its geometry, and write it.

Everything is checked on reading: the result of :func:`read_scan` is complete, finite, not constant, and has the
dimensions and channels that the caller needs. Otherwise a :class:`~monai_diffae.errors.ScanError` of one line says why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from PIL import Image

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.formats import dicom, itk, nifti, pictures
from monai_diffae.data.formats.scan import Header, Scan, problem
from monai_diffae.data.scan_checks import fit_scan
from monai_diffae.data.slices import Axis, flat_axis, ras_axes, slice_shape, slice_volume
from monai_diffae.errors import ConfigError, DiffAEError, ScanError

__all__ = [
    "SUFFIXES",
    "Axis",
    "Scan",
    "ScanError",
    "read_geometry",
    "read_scan",
    "read_shape",
    "scan_suffix",
    "slice_volume",
    "write_scan",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

SUFFIXES = (".nii.gz", ".nii", ".hdr.gz", ".hdr", *dicom.SUFFIXES, ".nrrd", ".mha", ".mhd", ".png", ".jpg", ".jpeg")
"""The suffixes of files that can be read; DICOM files may also have none. A NIfTI pair is read by its .hdr file."""

# The affine for a 2D image without geometry: rows run to posterior, columns to the patient's left.
_DISPLAYED = np.array([[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def read_scan(
    path: str | os.PathLike[str],
    *,
    spatial_dims: int | None = None,
    channels: int | None = None,
    nonfinite: Literal["error"] | float = "error",
) -> Scan:
    """Read one scan: NIfTI, NRRD, MHA, MHD, PNG, JPEG, a DICOM file or a folder with one DICOM series.

    Args:
        path: the file or folder; ``folder#series=UID`` names one of several series in a folder.
        spatial_dims: the dimensions that the caller needs, 2 or 3; None: either. A volume with one slice counts as 2D.
        channels: the number of channels that the caller needs; None: any. Grey images stored as RGB have one.
        nonfinite: ``"error"``, or a value that replaces NaN and infinite voxels; their number is logged.

    Returns:
        The scan: float32 array ``[C, X, Y, Z]`` in the file's voxel order, or ``[C, H, W]`` as displayed; affine in
        mm, RAS+.

    Raises:
        ScanError: the scan cannot be used. The message has the form ``file name: what is wrong; what to do``, with at
            most 200 characters.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     array = np.arange(24.0).reshape(1, 2, 3, 4)
        ...     path = write_scan(Path(folder) / "a.nii.gz", array, np.diag([1, 1, 3, 1.0]))
        ...     scan = read_scan(path, spatial_dims=3, channels=1)
        >>> scan.array.shape, scan.spacing_mm
        ((1, 2, 3, 4), (1.0, 1.0, 3.0))
    """
    path = _as_path(path)
    scan = _guarded(path, lambda p: _format(p)[0](p))
    return fit_scan(path, scan, spatial_dims, channels, nonfinite)


def read_shape(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Read the size from the header: voxels ``(R, A, S)`` of a volume in RAS order, or ``(H, W)`` of a 2D image.

    Raises:
        ScanError: the header cannot be read.
    """
    return read_geometry(path)[0]


def read_geometry(path: str | os.PathLike[str]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Read the size, as :func:`read_shape`, and the voxel spacing in mm along the same axes (1 for PNG and JPEG).

    Raises:
        ScanError: the header cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_scan(Path(folder) / "a.nii", np.zeros((1, 4, 5, 6)), np.diag([1, 1, 3, 1.0]))
        ...     read_geometry(path)
        ((4, 5, 6), (1.0, 1.0, 3.0))
    """
    path = _as_path(path)
    header = _guarded(path, lambda p: _format(p)[1](p))
    spacing_mm = np.linalg.norm(header.affine[:3, : len(header.shape)], axis=0)
    if len(header.shape) == 2:
        return header.shape, tuple(float(v) for v in spacing_mm)
    order = np.argsort(ras_axes(header.affine))
    shape, spacings = [header.shape[axis] for axis in order], [float(spacing_mm[axis]) for axis in order]
    flat = flat_axis(shape)
    if flat is None:
        return tuple(shape), tuple(spacings)
    rows, columns = slice_shape(range(3), flat)
    return (shape[rows], shape[columns]), (spacings[rows], spacings[columns])


def write_scan(
    path: str | os.PathLike[str],
    array: ArrayLike,
    affine: NDArray[np.float64] | None = None,
    *,
    value_range: tuple[float, float] | None = None,
    dtype: DTypeLike = np.float32,
    header: nib.Nifti1Header | None = None,
) -> Path:
    """Write an array as NIfTI (by default float32, so that no value is clipped) or PNG (8 bit), atomically.

    Args:
        path: ``.nii``, ``.nii.gz`` or ``.png``.
        array: ``[C, X, Y, Z]`` or ``[C, H, W]``; for PNG ``[1, H, W]`` or ``[3, H, W]``.
        affine: 4x4 in mm, RAS+, as in :class:`Scan`; None: voxels of 1 mm.
        value_range: for PNG: the values shown as black and white; values beyond are clipped. By default the array's
            minimum and maximum.
        dtype: for NIfTI: data type of the file. Values are rounded to integers, and must fit into the type.
        header: for NIfTI: the header of a scan of the same size, whose affine, type, units and codes replace
            ``affine`` and ``dtype``. Values that do not fit into its type are clipped; their number is logged.

    Raises:
        ConfigError: the file format cannot hold such an array.
        MachineError: the disk is full, or the folder cannot be written.
    """
    path, values = Path(path), np.asarray(array, np.float32)
    if values.ndim not in (3, 4):
        raise ConfigError(f"{path.name}: an array with {values.ndim} axes cannot be written; expected [C, *S]")
    if header is not None:
        num_clipped = 0

        def write(temporary: Path) -> None:
            nonlocal num_clipped
            num_clipped = nifti.write_like(temporary, values[0], header)

        write_atomic(path, write)
        if num_clipped:
            logger.warning(
                "%s: %d voxels do not fit into %s and were clipped", path.name, num_clipped, header.get_data_dtype()
            )
        return path
    if path.name.endswith((".nii", ".nii.gz")):
        if values.ndim == 3:
            values = values[..., None]
            affine = _DISPLAYED if affine is None else affine
        values = (np.round(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)
        stored = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
        image = nib.Nifti1Image(stored, np.eye(4) if affine is None else affine)
        image.header.set_xyzt_units("mm")
        return write_atomic(path, lambda temporary: nib.save(image, temporary))
    if path.suffix.lower() != ".png" or values.ndim != 3 or len(values) not in (1, 3):
        raise ConfigError(
            f"{path.name}: cannot hold an array {list(values.shape)}; use .nii.gz (or .png for [1 or 3, H, W])"
        )
    low, high = value_range or (float(values.min()), float(values.max()))
    grey = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    pixels = grey[0] if len(grey) == 1 else np.moveaxis(grey, 0, -1)
    picture = Image.fromarray(np.round(pixels).astype(np.uint8))
    return write_atomic(path, lambda temporary: picture.save(temporary, "PNG"))


def scan_suffix(path: str | os.PathLike[str]) -> str:
    """The file's suffix if it is one of :data:`SUFFIXES`, else ``""``."""
    name = Path(path).name.lower()
    return next((s for s in SUFFIXES if name.endswith(s)), "")


def _as_path(path: str | os.PathLike[str]) -> Path:
    if not os.fspath(path):  # Path("") would be the working directory
        raise ScanError("the path of a scan is empty; give a file, or a folder with a DICOM series")
    return Path(path)


def _format(path: Path) -> tuple[Callable[[Path], Scan], Callable[[Path], Header]]:
    """The functions that read a file's scan and its header, after the checks that do not depend on the format."""
    folder, uid = dicom.split_series(path)
    if folder.is_dir():
        return dicom.read_series, dicom.read_header
    if uid is not None or not path.exists():
        raise problem(folder, "there is no such file", "check the path")
    if not path.stat().st_size:
        raise problem(path, "the file is empty", "copy it again")
    with open(path, "rb"):  # without permission it raises here; libraries would call the file damaged
        suffix = scan_suffix(path)
    if suffix.startswith((".nii", ".hdr")):
        return nifti.read, nifti.read_header
    if suffix in (".png", ".jpg", ".jpeg"):
        return pictures.read, pictures.read_header
    if suffix in (".nrrd", ".mha", ".mhd"):
        return itk.read, itk.read_header
    if suffix in dicom.SUFFIXES or dicom.is_dicom(path):
        return dicom.read_file, dicom.read_header
    if path.name.lower().endswith((".img", ".img.gz")):
        raise problem(path, "a pair of .hdr and .img files is read by its header", "give its .hdr file")
    raise problem(path, "files with this suffix cannot be read", "convert it to .nii.gz, .png or DICOM")


def _guarded(path: Path, read: Callable[[Path], T]) -> T:
    """Read a file, and turn errors of the machine or of a library into one line."""
    try:
        return read(path)
    except DiffAEError:
        raise
    except PermissionError as error:
        raise problem(path, "there is no permission to read it", "change its permissions (chmod u+r)") from error
    except MemoryError as error:
        raise problem(path, "it does not fit into memory", "crop or resample it") from error
    except OSError as error:
        raise problem(path, f"it cannot be read ({error.strerror or error})", "copy it again") from error
    except Exception as error:  # random bytes can fail anywhere in a library
        raise problem(
            path, f"it cannot be read ({type(error).__name__}: {error})", "copy or export it again"
        ) from error
