"""Images that a model made: their files, in its own grid, and their names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
from monai_diffae.data.formats.dicom import is_dicom, split_series
from monai_diffae.data.scans import scan_suffix, write_scan
from monai_diffae.errors import ConfigError
from monai_diffae.transforms import NativeSpace, write_native

logger = logging.getLogger(__name__)

_MOST = 100  # standard deviations


def image_suffix(shape: Sequence[int], source: str = ".png") -> str:
    """``.png`` for a grey or colour 2D image ``[C, *S]`` of a scan file that is a PNG or JPEG, else ``.nii.gz``.

    Example:
        >>> image_suffix((3, 16, 16), "a.jpeg"), image_suffix((1, 16, 16), "a.nii"), image_suffix((2, 16, 16), "a.png")
        ('.png', '.nii.gz', '.nii.gz')
    """
    is_picture = scan_suffix(source) in (".png", ".jpg", ".jpeg") and len(shape) == 3 and shape[0] in (1, 3)
    return ".png" if is_picture else ".nii.gz"


def grid_affine(config: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """The affine of a volume in the grid of a model with this config, the first voxel at 0 mm; None for a 2D model.

    Example:
        >>> grid_affine({"spatial_dims": 3, "spacing_mm": [1.5, 1.5, 3.0]}).diagonal().tolist()
        [1.5, 1.5, 3.0, 1.0]
    """
    if "spacing_mm" not in config:
        return None
    return np.diag([*map(float, config["spacing_mm"]), 1.0])


def write_image(
    path: Path,
    image: Tensor,
    model_range: tuple[float, float],
    source: str = ".png",
    affine: NDArray[np.float64] | None = None,
) -> Path:
    """Write an image (C, *S) as PNG (8 bit), or as NIfTI (float32) if the scan file ``source`` was no picture.

    Args:
        path: without a suffix.
        image: in the model's range.
        model_range: black and white.
        source: the name of the scan's file.
        affine: of the model's grid, for NIfTI; voxels of 1 mm without one.

    Returns:
        The file.
    """
    values, suffix = image.detach().float().cpu().numpy(), image_suffix(image.shape, source)
    file = path.with_name(f"{path.name}{suffix}")
    return write_scan(file, values, affine, value_range=model_range if suffix == ".png" else None)


def write_in_space_of(
    folder: Path, name: str, native: NativeSpace, array: NDArray[np.float32], case: Case, dicom: str | None = None
) -> None:
    """Write an image in its scan's own space: ``folder/<name>.nii.gz`` or ``.png``.

    Args:
        folder: where to.
        name: without a suffix.
        native: the case's space.
        array: what it brought back, ``[C, *native S]``.
        case: whose image it is.
        dicom: the series' description, to write a DICOM case also as ``folder/dicom/<name>``.
    """
    write_native(folder / f"{name}{native.suffix}", array, native.scan)
    if dicom is not None and is_dicom_case(case):
        target = folder / "dicom" / (name if native.scan.spatial_dims == 3 else f"{name}.dcm")
        write_series(target, array, str(case.images["image"]), description=dicom, overwrite=True)


def warn_without_dicom(cases: Sequence[Case]) -> None:
    """Say that series were asked for, and none of the cases is one."""
    if not any(map(is_dicom_case, cases)):
        logger.warning("dicom: none of the cases is a DICOM file or series as a whole, so no series is written")


def is_dicom_case(case: Case) -> bool:
    """Whether a case is one whole DICOM file or series."""
    image = case.images["image"]
    if case.slice_index is not None or not isinstance(image, Path):
        return False
    folder, _ = split_series(image)
    return folder.is_dir() or is_dicom(folder)


def read_image(path: Path, model_range: tuple[float, float]) -> Tensor:
    """What :func:`write_image` wrote, in the model's range: (C, *S); (C, H, W, 1) of a 2D image in NIfTI."""
    low, high = model_range
    values: NDArray[np.floating[Any]]
    if path.suffix == ".png":
        values, num_axes = np.asarray(Image.open(path), np.float32) / 255 * (high - low) + low, 2
    else:
        values, num_axes = nib.Nifti1Image.from_filename(path).get_fdata(dtype=np.float32), 3
    return torch.from_numpy(values[None] if values.ndim == num_axes else np.moveaxis(values, -1, 0))


def names_of(amounts: Sequence[float]) -> list[str]:
    """Amounts as images are named by them.

    Raises:
        ConfigError: there are none, some are no finite numbers or far beyond all cases, or two have the same name.

    Example:
        >>> names_of([-2, 0, 0.5])
        ['-2.00', '+0.00', '+0.50']
    """
    if not len(amounts) or not np.isfinite(amounts).all():
        raise ConfigError(f"amounts: {list(amounts)} are not numbers; give some, such as -2 and 2")
    most = max(amounts, key=abs)
    if abs(most) > _MOST:
        raise ConfigError(f"amounts: {most:g} is beyond {_MOST} standard deviations; choose some from -3 to 3")
    names = [f"{amount:+.2f}" for amount in amounts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"amounts: two of them are {twice} to two digits, by which images are named; leave one out")
    return names


def titles_of(amounts: Sequence[float]) -> list[str]:
    """Amounts as they stand above a picture's columns.

    Example:
        >>> titles_of([-2, 0, 0.5])
        ['-2', '0', '+0.5']
    """
    return [f"{amount:+g}" if amount else "0" for amount in amounts]
