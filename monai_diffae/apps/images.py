"""Images that a model made, written in its own grid."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from monai_diffae.data.scans import scan_suffix, write_scan


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
