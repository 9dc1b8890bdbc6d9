"""Reconstruction errors, one value per image."""

from __future__ import annotations

import torch
from monai.metrics.regression import SSIMMetric
from torch import Tensor


def reconstruction_errors(
    images: Tensor, reconstructions: Tensor, model_range: tuple[float, float] = (-1.0, 1.0)
) -> dict[str, Tensor]:
    """MSE, PSNR and SSIM of each image.

    Args:
        images: (B, C, *S) in ``model_range``.
        reconstructions: the same shape.
        model_range: black and white. MSE is in its squared units; PSNR and SSIM do not depend on it.

    Returns:
        ``mse``, ``psnr`` (dB) and ``ssim``, each (B,) float32.

    Example:
        >>> images = torch.rand(2, 1, 16, 16) * 2 - 1
        >>> errors = reconstruction_errors(images, images)
        >>> [round(v, 3) for v in errors["ssim"].tolist()], errors["mse"].tolist()
        ([1.0, 1.0], [0.0, 0.0])
    """
    low, width = model_range[0], model_range[1] - model_range[0]
    # SSIM compares mean intensities by their ratio, so black must be 0
    images, reconstructions = images.detach().float() - low, reconstructions.detach().float() - low
    spatial_dims = images.ndim - 2
    # SSIM's usual window of 11 does not fit into very small images.
    window = min(11, *images.shape[2:])
    window -= 1 - window % 2
    ssim = SSIMMetric(spatial_dims, data_range=width, win_size=window)
    mse = (images - reconstructions).square().flatten(1).mean(dim=1)
    return {
        "mse": mse,
        "psnr": 10 * torch.log10(width**2 / mse),
        # MONAI (1.6.1) computes it in float32, which rounds equal images to above 1
        "ssim": ssim(reconstructions, images).flatten().clamp(max=1),  # type: ignore[union-attr]
    }
