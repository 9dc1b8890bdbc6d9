"""The quality of reconstructions, one value per image: MSE, PSNR, SSIM, MS-SSIM and LPIPS where they are defined."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.metrics.regression import MultiScaleSSIMMetric, SSIMMetric
from torch import Tensor

from monai_diffae.metrics.deep_features import SMALLEST_SIDE, PerceptualDistance, pairwise_distance
from monai_diffae.policies import Range

SMALLEST_MS_SSIM_SIDE = 176  # voxels: MS-SSIM halves images four times, and its window of 11 must still fit into them


def reconstruction_errors(
    images: Tensor, reconstructions: Tensor, model_range: Range = (-1.0, 1.0)
) -> dict[str, Tensor]:
    """``mse``, ``psnr`` (dB) and ``ssim`` of images (B, C, *S) in ``model_range``, each (B,) float32.

    MSE is in the squared units of the range; PSNR and SSIM do not depend on it.

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


@dataclass(frozen=True)
class ImageQuality:
    """Measures reconstructions of images of one size.

    Example:
        >>> import torch
        >>> quality = ImageQuality((16, 16))
        >>> images = torch.rand(2, 1, 16, 16) * 2 - 1
        >>> list(quality(images, images)), list(quality.omitted())
        (['mse', 'psnr', 'ssim'], ['ms_ssim'])
    """

    image_size: Sequence[int]  #: spatial size of the images
    model_range: Range = (-1.0, 1.0)  #: black and white
    lpips: PerceptualDistance | None = None  #: measures LPIPS; None: LPIPS is left out

    def omitted(self) -> dict[str, str]:
        """The metrics that images of this size do not have, with the reason."""
        size, reasons = " x ".join(map(str, self.image_size)), {}
        if not self.has_ms_ssim:
            reasons["ms_ssim"] = f"images of {size} are too small; it needs {SMALLEST_MS_SSIM_SIDE} along each axis"
        if self.lpips is not None and not self.has_lpips:
            reasons["lpips"] = f"images of {size} are too small; it needs {SMALLEST_SIDE} along each axis"
        return reasons

    @property
    def has_ms_ssim(self) -> bool:
        """Whether the images are large enough for MS-SSIM."""
        return min(self.image_size) >= SMALLEST_MS_SSIM_SIDE

    @property
    def has_lpips(self) -> bool:
        """Whether LPIPS can be measured."""
        return self.lpips is not None and min(self.image_size) >= SMALLEST_SIDE

    def __call__(self, images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
        """The metrics of reconstructions (B, C, *S), (B,) each: ``mse``, ``psnr``, ``ssim``, ``ms_ssim``, ``lpips``."""
        values = reconstruction_errors(images, reconstructions, self.model_range)
        if self.has_ms_ssim:
            low, high = self.model_range
            ms_ssim = MultiScaleSSIMMetric(len(self.image_size), data_range=high - low)
            value: Tensor = ms_ssim(reconstructions.float() - low, images.float() - low)  # type: ignore[assignment]
            values["ms_ssim"] = value.flatten().clamp(max=1)
        if self.lpips is not None and self.has_lpips:
            values["lpips"] = self.lpips(images, reconstructions, self.model_range)
        return values

    def diversity(self, draws: Tensor) -> dict[str, Tensor]:
        """How much several decodings (B, K, C, *S) of each image differ; K is at least 2.

        Returns:
            ``diversity``, the standard deviation of a voxel over the draws (the root of the mean variance), (B,); and
            ``diversity_lpips``, the mean LPIPS over all pairs of draws, if LPIPS can be measured.
        """
        values = {"diversity": draws.float().var(dim=1).flatten(1).mean(dim=1).sqrt()}
        if self.lpips is not None and self.has_lpips:
            values["diversity_lpips"] = pairwise_distance(self.lpips, draws, self.model_range)
        return values
