"""Write an array with its geometry as NIfTI, NRRD or PNG."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike, DTypeLike, NDArray
from PIL import Image

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.formats import itk
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

SYNTHETIC = "synthetic, monai_diffae"
"""The description of an image that a model decoded."""

# The affine for a 2D image without geometry: rows run to posterior, columns to the patient's left.
_DISPLAYED = np.array([[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_scan(
    path: str | os.PathLike[str],
    array: ArrayLike,
    affine: NDArray[np.float64] | None = None,
    *,
    value_range: tuple[float, float] | None = None,
    dtype: DTypeLike = np.float32,
    header: nib.Nifti1Header | None = None,
    description: str = "",
) -> Path:
    """Write an array as NIfTI or NRRD (by default float32, so that no value is clipped) or PNG (8 bit), atomically.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.png``.
        array: ``[C, X, Y, Z]`` or ``[C, H, W]``; for PNG ``[1, H, W]`` or ``[3, H, W]``. In NIfTI and NRRD, a 2D image
            becomes a volume ``[H, W, 1]``.
        affine: 4x4 in mm, RAS+, as in :class:`~monai_diffae.data.scans.Scan`; None: voxels of 1 mm.
        value_range: for PNG: the values shown as black and white; values beyond are clipped. By default the array's
            minimum and maximum.
        dtype: for NIfTI and NRRD: data type of the file. For integers, values are rounded. Values that do not fit into
            the type are clipped; their number is logged.
        header: for NIfTI: the header of a scan of the same size, whose affine, type, units and codes replace
            ``affine`` and ``dtype``.
        description: for NIfTI: the text ``descrip`` of the header, at most 79 characters.

    Raises:
        ConfigError: the file format cannot hold such an array.
        MachineError: the disk is full, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_scan(Path(folder) / "mask.nrrd", np.ones((1, 2, 3, 4)), dtype=np.uint8)
        ...     itk.read(path).array.shape
        (1, 2, 3, 4)
    """
    path, given = Path(path), np.asarray(array)
    if given.dtype.kind not in "biuf":
        raise ConfigError(f"{path.name}: values of type {given.dtype} cannot be written; give real numbers")
    values, name = given.astype(np.float32), path.name
    if name.endswith(".png") and values.ndim == 3 and len(values) in (1, 3):
        return _write_png(path, values, value_range or (float(values.min()), float(values.max())))
    if not name.endswith((".nii", ".nii.gz", ".nrrd")) or values.ndim not in (3, 4):
        raise ConfigError(
            f"{name}: cannot hold an array {list(values.shape)}; use .nii.gz or .nrrd (or .png for [1 or 3, H, W])"
        )
    if header is not None and not name.endswith(".nrrd"):
        return _write_like(path, values[0], header, description)
    if values.ndim == 3:
        values = values[..., None]
        affine = _DISPLAYED if affine is None else affine
    stored, affine = _as_type(path, values, np.dtype(dtype)), np.eye(4) if affine is None else affine
    if name.endswith(".nrrd"):
        image = itk.to_image(path, stored, affine)
        return write_atomic(path, lambda temporary: itk.write_nrrd(temporary, image, name))
    set_nifti_type(path, nib.Nifti1Header(), stored.dtype)
    volume = nib.Nifti1Image(stored[0] if len(stored) == 1 else np.moveaxis(stored, 0, -1), affine)
    volume.header.set_xyzt_units("mm")
    return _write_nifti(path, volume, description)


def set_nifti_type(path: Path, header: nib.Nifti1Header, dtype: np.dtype[Any]) -> None:
    """Set the data type of a header, without a scaling."""
    try:
        header.set_data_dtype(np.uint8 if dtype.kind == "b" else dtype)
    except HeaderDataError as error:
        raise ConfigError(f"{path.name}: NIfTI cannot hold {dtype}; use float32, float64 or an integer type") from error
    header.set_slope_inter(1.0, 0.0)


def _write_like(path: Path, array: NDArray[np.float32], header: nib.Nifti1Header, description: str) -> Path:
    """Write a volume ``[X, Y, Z]`` with the size, affine, codes, units, type and scaling of another file."""
    header = header.copy()
    for text in ("descrip", "aux_file", "intent_name", "db_name"):  # they may contain names
        if text in header:  # NIfTI-2 has no db_name
            header[text] = b""
    dtype, (slope, intercept) = header.get_data_dtype(), header.get_slope_inter()
    if dtype.kind not in "iu":
        slope = intercept = None
    stored = _as_type(path, array, dtype, (slope or 1.0, intercept or 0.0)).reshape(header.get_data_shape())
    image_class = nib.Nifti2Image if int(header["sizeof_hdr"]) == 540 else nib.Nifti1Image
    image = image_class(stored, header.get_best_affine(), header)
    image.header.set_slope_inter(slope, intercept)
    return _write_nifti(path, image, description)


def _write_nifti(path: Path, image: nib.Nifti1Image, description: str) -> Path:
    image.header["descrip"] = description.encode()
    return write_atomic(path, lambda temporary: nib.save(image, temporary))


def _write_png(path: Path, values: NDArray[np.float32], value_range: tuple[float, float]) -> Path:
    low, high = value_range
    grey = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    pixels = grey[0] if len(grey) == 1 else np.moveaxis(grey, 0, -1)
    picture = Image.fromarray(np.round(pixels).astype(np.uint8))
    return write_atomic(path, lambda temporary: picture.save(temporary, "PNG"))


def _as_type(
    path: Path, values: NDArray[np.float32], dtype: np.dtype[Any], scaling: tuple[float, float] = (1.0, 0.0)
) -> NDArray[Any]:
    """Convert values to the type of a file; integers are rounded, and clipped if they do not fit."""
    dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype
    if dtype.kind not in "iu":
        return values.astype(dtype)
    if not np.isfinite(values).all():
        raise ConfigError(f"{path.name}: {dtype} cannot hold values that are NaN or infinite; use float32")
    slope, intercept = scaling
    limits, rounded = np.iinfo(dtype), np.round((values.astype(np.float64) - intercept) / slope)
    num_clipped = int(((rounded < limits.min) | (rounded > limits.max)).sum())
    if num_clipped:
        logger.warning("%s: %d voxels do not fit into %s and were clipped", path.name, num_clipped, dtype)
    highest = np.nextafter(float(limits.max), 0) if dtype.itemsize == 8 else limits.max  # float64 cannot hold 2^63 - 1
    return np.clip(rounded, limits.min, highest).astype(dtype)
