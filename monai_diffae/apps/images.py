"""Images that a model made: their files, in its own grid, and their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from monai_diffae.data.scans import scan_suffix, write_scan
from monai_diffae.errors import ConfigError


def is_picture(image: Tensor, source: str = ".png") -> bool:
    """Whether an image (C, *S) of a scan file becomes a PNG: grey or colour, 2D, from a PNG or JPEG."""
    return scan_suffix(source) in (".png", ".jpg", ".jpeg") and image.ndim == 3 and len(image) in (1, 3)


def write_image(path: Path, image: Tensor, model_range: tuple[float, float], source: str = ".png") -> Path:
    """Write an image (C, *S) as PNG (8 bit), or as NIfTI (float32) if the scan file ``source`` was no picture.

    Args:
        path: without a suffix.
        image: in the model's range.
        model_range: black and white.
        source: the name of the scan's file.

    Returns:
        The file.
    """
    values = image.detach().float().cpu().numpy()
    if is_picture(image, source):
        return write_scan(path.with_name(f"{path.name}.png"), values, value_range=model_range)
    return write_scan(path.with_name(f"{path.name}.nii.gz"), values)


def remove_images(folder: Path) -> None:
    """What an earlier run wrote into a folder of images, which would stay beside the new ones."""
    for image in [*folder.glob("*.png"), *folder.glob("*.nii.gz")]:
        image.unlink()


def names_of(amounts: Sequence[float]) -> list[str]:
    """Amounts as images are named by them.

    Raises:
        ConfigError: there are none, some are no finite numbers, or two have the same name.

    Example:
        >>> names_of([-2, 0, 0.5])
        ['-2.00', '+0.00', '+0.50']
    """
    if not len(amounts) or not np.isfinite(amounts).all():
        raise ConfigError(f"amounts: {list(amounts)} are not numbers; give some, such as -2 and 2")
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
