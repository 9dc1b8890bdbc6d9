"""Files of images that a model decoded: in the model's grid, or in the space of the scan that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from monai_diffae.data.cases import Case
from monai_diffae.data.dicom_series import write_series
from monai_diffae.data.formats import pictures
from monai_diffae.data.formats.dicom import is_dicom, split_series
from monai_diffae.data.scan_writing import SYNTHETIC
from monai_diffae.data.scans import scan_suffix, write_scan
from monai_diffae.transforms.native import NativeSpace
from monai_diffae.transforms.native_writing import write_native

logger = logging.getLogger(__name__)


def image_suffix(shape: Sequence[int], source: str = ".png") -> str:
    """Return ``.png`` for a grey or colour 2D image ``[C, *S]`` of a PNG or JPEG scan, else ``.nii.gz``.

    Example:
        >>> image_suffix((3, 16, 16), "a.jpeg"), image_suffix((1, 16, 16), "a.nii"), image_suffix((2, 16, 16), "a.png")
        ('.png', '.nii.gz', '.nii.gz')
    """
    is_picture = scan_suffix(source) in pictures.SUFFIXES and len(shape) == 3 and shape[0] in (1, 3)
    return ".png" if is_picture else ".nii.gz"


def write_image(
    path: Path,
    image: Tensor,
    model_range: tuple[float, float],
    source: str = ".png",
    affine: NDArray[np.float64] | None = None,
) -> Path:
    """Write a decoded image in the model's grid as 8-bit PNG, or as float32 NIfTI if its scan is not a picture.

    Args:
        path: the file, without its suffix.
        image: (C, *S) in the model's range.
        model_range: black and white.
        source: file name of the scan.
        affine: affine of the model's grid, for NIfTI; None: voxels of 1 mm.

    Returns:
        The file.
    """
    values, suffix = image.detach().float().cpu().numpy(), image_suffix(image.shape, source)
    file = path.with_name(f"{path.name}{suffix}")
    value_range = model_range if suffix == ".png" else None
    return write_scan(file, values, affine, value_range=value_range, description=SYNTHETIC)


def read_image(path: Path, model_range: tuple[float, float]) -> Tensor:
    """Read a file of :func:`write_image`.

    Returns:
        The image in the model's range: (C, *S), or (C, H, W, 1) for a 2D image in a NIfTI file.
    """
    low, high = model_range
    values: NDArray[np.floating[Any]]
    if path.suffix == ".png":
        values, num_axes = np.asarray(Image.open(path), np.float32) / 255 * (high - low) + low, 2
    else:
        values, num_axes = nib.Nifti1Image.from_filename(path).get_fdata(dtype=np.float32), 3
    return torch.from_numpy(values[None] if values.ndim == num_axes else np.moveaxis(values, -1, 0))


def write_case_image(
    folder: Path, name: str, native: NativeSpace, array: NDArray[np.float32], case: Case, dicom: str | None = None
) -> Path:
    """Write a decoded image in the space of its scan.

    Args:
        folder: the folder for ``<name>.nii.gz`` or ``<name>.png``.
        name: file name without its suffix.
        native: the case's own space.
        array: ``[C, *native S]`` as :meth:`NativeSpace.back` returns it.
        case: the case that the image belongs to.
        dicom: series description; if given, a DICOM case is also written as a series, ``folder/dicom/<name>``.

    Returns:
        The file.
    """
    file = write_native(folder / f"{name}{native.suffix}", array, native.scan, description=SYNTHETIC)
    if dicom is not None and is_dicom_case(case):
        target = folder / "dicom" / (name if native.scan.spatial_dims == 3 else f"{name}.dcm")
        write_series(target, array, str(case.images["image"]), description=dicom, overwrite=True)
    return file


def warn_without_dicom(cases: Sequence[Case]) -> None:
    """Log a warning if DICOM series are requested but no case is one."""
    if not any(map(is_dicom_case, cases)):
        logger.warning("dicom: none of the cases is a DICOM file or series as a whole, so no series is written")


def is_dicom_case(case: Case) -> bool:
    """Return whether a case is one whole DICOM file or series."""
    image = case.images["image"]
    if case.slice_index is not None or not isinstance(image, Path):
        return False
    folder, _ = split_series(image)
    return folder.is_dir() or is_dicom(folder)
