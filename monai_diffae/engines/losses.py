"""Losses beside the diffusion loss: sharpness of decoded images."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d

from monai_diffae.metrics import PerceptualDistance
from monai_diffae.policies import Range

_SCALES = 3  # of the gradients: full, half and quarter size


class ImageLoss(nn.Module):
    """A loss of decoded images: differences of their gradients, and LPIPS.

    Args:
        gradient_weight: weight of :func:`gradient_difference`.
        lpips_weight: weight of LPIPS.
        lpips: measures LPIPS; None: ``lpips_weight`` is 0.
        model_range: black and white.

    Example:
        >>> images, target = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
        >>> loss = ImageLoss(gradient_weight=0.1)(images, target)
        >>> torch.equal(loss, 0.1 * gradient_difference(images, target))
        True
    """

    def __init__(
        self,
        gradient_weight: float = 0.0,
        lpips_weight: float = 0.0,
        lpips: PerceptualDistance | None = None,
        model_range: Range = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        self.gradient_weight, self.lpips_weight = gradient_weight, lpips_weight
        self.lpips, self.model_range = lpips, model_range

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """The loss (B,) of images (B, C, *S); terms with weight 0 are not computed."""
        loss = images.new_zeros(len(images))
        if self.gradient_weight:
            loss = loss + self.gradient_weight * gradient_difference(images, target)
        if self.lpips is not None:
            loss = loss + self.lpips_weight * self.lpips(images, target, self.model_range)
        return loss


def gradient_difference(images: Tensor, target: Tensor) -> Tensor:
    """The mean absolute difference (B,) of the gradients of images (B, C, *S) at full, half and quarter size.

    A gradient is the difference between neighboring voxels along an axis.

    Example:
        >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8)
        >>> gradient_difference(ramp, ramp + 5)
        tensor([0.])
    """
    pool = avg_pool2d if images.ndim == 4 else avg_pool3d
    difference = images - target  # pooling and gradients are linear
    values = []
    for _ in range(_SCALES):
        axes = [axis for axis in range(2, difference.ndim) if difference.shape[axis] > 1]
        values += [difference.diff(dim=axis).abs().flatten(1).mean(dim=1) for axis in axes]
        difference = pool(difference, [min(2, side) for side in difference.shape[2:]])
    return torch.stack(values).mean(dim=0)
