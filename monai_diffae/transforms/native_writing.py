"""Write an image in the space of its scan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from monai_diffae.data.scan_writing import no_such_type
from monai_diffae.data.scans import Scan, write_scan
from monai_diffae.data.slices import in_file_axes
from monai_diffae.errors import ConfigError

_INTEGERS = (np.uint8, np.int16, np.uint16, np.int32)


def write_native(
    path: str | os.PathLike[str],
    array: NDArray[Any],
    scan: Scan,
    dtype: DTypeLike | None = None,
    *,
    description: str = "",
) -> Path:
    """Write an image in a scan's space as NIfTI or NRRD with the scan's affine, or as PNG, atomically.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd`` or, for 2D images, ``.png``: see :attr:`NativeSpace.suffix`.
        array: ``[C', *native S]`` in the scan's units, or a map with values and channels of its own.
        scan: the scan.
        dtype: data type of the file; uint8 for masks, float32 for maps and differences. With integers, values are
            rounded; values that do not fit are clipped, and their number is logged. None: the type of an image in the
            scan's units. For a NIfTI volume, this is the type of the scan's file, if it holds the array. Otherwise, if
            the scan has whole numbers, it is the smallest of uint8, int16, uint16 and int32 that holds the scan and the
            array; else float32. For PNG, values are rounded and clipped to 0..255.
        description: for NIfTI: the text ``descrip`` of the header.

    Raises:
        ConfigError: ``array`` has another size than the scan, or the file format cannot hold it.
        MachineError: the disk is full, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> scan = Scan(np.zeros((1, 2, 2), np.float32), np.eye(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_native(Path(folder) / "a.png", np.full((1, 2, 2), 37.2), scan)
        ...     np.asarray(Image.open(path)).tolist()
        [[37, 37], [37, 37]]
    """
    name = Path(path).name
    if array.shape[1:] != scan.array.shape[1:]:
        sizes = f"{list(array.shape)}, but the scan's is {list(scan.array.shape)}"
        raise ConfigError(f"{name}: the size is {sizes}; convert it to the scan's space first")
    if name.lower().endswith(".png"):
        if dtype is not None and np.dtype(dtype) not in (np.uint8, np.bool_):
            raise ConfigError(f"{name}: PNG holds uint8, not {np.dtype(dtype)}; use .nii.gz or .nrrd, or write uint8")
        return write_scan(path, array, value_range=(0, 255))
    array, scan = in_file_axes(array, scan)
    header = scan.header if len(array) == 1 and not name.lower().endswith(".nrrd") else None
    if header is not None:
        is_image = dtype is None
        header = _wide_header(header, array) if is_image else _header_of_type(Path(path), header, np.dtype(dtype))
    affine = None if scan.lacks_geometry else scan.affine
    stored = _stored_type(array, scan) if dtype is None and header is None else dtype
    dtype = np.float32 if stored is None else stored
    return write_scan(path, array, affine, dtype=dtype, header=header, description=description)


def _header_of_type(path: Path, header: nib.Nifti1Header, dtype: np.dtype[Any]) -> nib.Nifti1Header:
    """A scan's header for an array of another type, whose values are not the scan's intensities."""
    header = header.copy()
    try:
        header.set_data_dtype(np.uint8 if dtype.kind == "b" else dtype)
    except HeaderDataError as error:
        raise ConfigError(no_such_type(path, dtype)) from error
    header.set_slope_inter(1.0, 0.0)
    header["cal_min"] = header["cal_max"] = 0.0  # a viewer would use the scan's window
    return header


def _wide_header(header: nib.Nifti1Header, array: NDArray[Any]) -> nib.Nifti1Header:
    """A scan's header with an integer type that holds an image with these values; its own type if that does."""
    dtype = header.get_data_dtype()
    if dtype.kind not in "iu" or not np.isfinite(array).all():
        return header
    slope, inter = (value or default for value, default in zip(header.get_slope_inter(), (1.0, 0.0), strict=True))
    low, high = sorted((float(end) - inter) / slope for end in (array.min(), array.max()))
    wide = _smallest_type(low, high, (dtype, *_INTEGERS))
    if wide != dtype:
        header = header.copy()
        header.set_data_dtype(wide)
    return header


def _smallest_type(low: float, high: float, types: Sequence[DTypeLike]) -> DTypeLike:
    """The first of the integer types that holds two numbers, rounded; else float32."""
    # Python integers, because float32 rounds the end of int32 up to a number that would wrap around
    lowest, highest = round(low), round(high)
    fitting = (each for each in types if np.iinfo(each).min <= lowest and highest <= np.iinfo(each).max)
    return next(fitting, np.float32)


def _stored_type(array: NDArray[Any], scan: Scan) -> DTypeLike:
    # decided by the values: with a slope, or after an export of integers as floats, the file's type says little
    if not (np.equal(np.round(scan.array), scan.array).all() and np.isfinite(array).all()):
        return np.float32
    low, high = min(scan.array.min(), array.min()), max(scan.array.max(), array.max())
    return _smallest_type(float(low), float(high), _INTEGERS)
