"""Losses beside the diffusion loss: agreement of two views (VICReg), and sharpness of decoded images."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d, mse_loss, relu
from torch.nn.parallel import DistributedDataParallel

from monai_diffae.metrics import PerceptualDistance

_INVARIANCE, _VARIANCE, _COVARIANCE = 25.0, 25.0, 1.0  # the paper's weights
_SMALLEST_VARIANCE = 1e-4  # added to each variance, so that the gradient of the standard deviation is finite
_SCALES = 3  # of the gradients: full, half and quarter size


def agreement_loss(first: Tensor, second: Tensor) -> Tensor:
    """The VICReg loss of two views (B, Z): small if their z_sem are similar, and its numbers vary and are uncorrelated.

    Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906: 25 x the mean squared difference, 25 x how far standard
    deviations over the batch are below 1, and the squared covariances divided by Z; but without an expander. With
    several processes, each uses its own part of the batch.
    """
    first, second = first.float(), second.float()
    variance = (_variance_term(first) + _variance_term(second)) / 2
    covariance = _covariance_term(first) + _covariance_term(second)
    return _INVARIANCE * mse_loss(first, second) + _VARIANCE * variance + _COVARIANCE * covariance


@contextmanager
def encoding_both(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within this context, one pass encodes two views (2B, C, *S), lists both z_sem and decodes with the first half."""
    passes: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor], output: Tensor | tuple[Tensor, ...]) -> Tensor:
        z_sem = output if isinstance(output, Tensor) else output[0]
        passes.append(z_sem)
        return z_sem[: len(z_sem) // 2]

    autoencoder = network.module if isinstance(network, DistributedDataParallel) else network
    hook = autoencoder.encoder.register_forward_hook(keep)  # type: ignore[union-attr]
    try:
        yield passes
    finally:
        hook.remove()


def _variance_term(z_sem: Tensor) -> Tensor:
    return relu(1 - (z_sem.var(dim=0) + _SMALLEST_VARIANCE).sqrt()).mean()


def _covariance_term(z_sem: Tensor) -> Tensor:
    centred = z_sem - z_sem.mean(dim=0)
    covariance = centred.mT @ centred / (len(z_sem) - 1)
    return (covariance - covariance.diagonal().diag()).square().sum() / z_sem.shape[1]


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
        model_range: tuple[float, float] = (-1.0, 1.0),
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
