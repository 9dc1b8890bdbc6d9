"""Agreement of two views: a loss that draws the z_sem of two views of an image together (VICReg)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu
from torch.nn.parallel import DistributedDataParallel

from monai_diffae.errors import ConfigError

_INVARIANCE, _VARIANCE, _COVARIANCE = 25.0, 25.0, 1.0  # the paper's weights
_SMALLEST_VARIANCE = 1e-4  # is added, so that the gradient of the standard deviation is finite


def agreement_loss(first: Tensor, second: Tensor) -> Tensor:
    """How much the z_sem of two views differ, and how far their numbers are from being spread and independent.

    VICReg (Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906), with the weights of the paper and the means of its
    official code. 25 times the invariance: the mean squared difference of the two z_sem. 25 times the variance: how far
    the standard deviation of each number over the batch is below 1. 1 time the covariance: the squares of the
    covariances between two numbers, divided by the number of channels.

    Two things differ from the paper. There is no expander network: the loss is that of z_sem itself. And the network
    does not normalise z_sem, whose scale is what training makes of it: the variance term raises it to a standard
    deviation of at least 1. With several processes, each computes the statistics of its own part of the batch.

    Args:
        first: z_sem of one view (B, Z), with B of at least 2.
        second: z_sem of the other view (B, Z).

    Returns:
        One number, float32.

    Raises:
        ConfigError: there is only one image.

    Example:
        >>> z_sem = 3 * torch.eye(2)
        >>> agreement_loss(z_sem, z_sem), agreement_loss(z_sem, z_sem + 1)
        (tensor(20.2500), tensor(45.2500))
    """
    if len(first) < 2:
        raise ConfigError("batch_size is 1: agreement_weight needs batches of at least 2 images; use a larger batch")
    first, second = first.float(), second.float()
    variance = (_variance_term(first) + _variance_term(second)) / 2
    covariance = _covariance_term(first) + _covariance_term(second)
    return _INVARIANCE * mse_loss(first, second) + _VARIANCE * variance + _COVARIANCE * covariance


def both_views(seen: Tensor, drawn: Tensor) -> Tensor:
    """The two views of each image in one batch (2B, C, *S), for :func:`encoding_both`.

    Args:
        seen: the encoder's images (B, C, *S).
        drawn: the images that the decoder reconstructs (B, C, *S).

    Raises:
        ConfigError: they are the same tensor, or have different shapes.
    """
    if seen is drawn:
        raise ConfigError("agreement_weight needs two views of an image, but encoder_key is the decoder's image")
    if seen.shape != drawn.shape:
        raise ConfigError(
            f"agreement_weight needs two views of one shape, but the encoder's image is {tuple(seen.shape[1:])} and "
            f"the decoder's {tuple(drawn.shape[1:])}; set agreement_weight to 0"
        )
    return torch.cat([seen, drawn])


@contextmanager
def encoding_both(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within this context, the network encodes :func:`both_views`, and decodes with z_sem of the first.

    Both are encoded in one forward pass of the network, so that DistributedDataParallel sees one forward.

    Args:
        network: a :class:`~monai_diffae.networks.DiffusionAutoencoder`, also as a DistributedDataParallel.

    Yields:
        A list, to which each pass adds z_sem of both views (2B, Z).
    """
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
