"""Agreement of two views: a loss that makes the z_sem of two views of an image similar (VICReg)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu
from torch.nn.parallel import DistributedDataParallel

from monai_diffae.errors import ConfigError

_INVARIANCE, _VARIANCE, _COVARIANCE = 25.0, 25.0, 1.0  # the paper's weights
_SMALLEST_VARIANCE = 1e-4  # added to each variance, so that the gradient of the standard deviation is finite


def agreement_loss(first: Tensor, second: Tensor) -> Tensor:
    """The VICReg loss of two views: small if their z_sem are similar, and its numbers vary and are uncorrelated.

    VICReg (Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906), with the weights of the paper and the means of its
    official code. The loss is the sum of three terms. Invariance, times 25: the mean squared difference of the two
    z_sem. Variance, times 25: how far the standard deviation of each number over the batch is below 1. Covariance,
    times 1: the squares of the covariances between two numbers, divided by the number of channels.

    Two things differ from the paper. There is no expander network: the loss is computed from z_sem itself. And the
    network does not normalise z_sem; training determines its scale, and the variance term pulls the standard deviations
    up to 1. With several processes, each computes the statistics of its own part of the batch. Both z_sem are (B, Z)
    with B of at least 2; the loss is float32.

    Example:
        >>> z_sem = 3 * torch.eye(2)
        >>> agreement_loss(z_sem, z_sem), agreement_loss(z_sem, z_sem + 1)
        (tensor(40.5000), tensor(65.5000))
    """
    if len(first) < 2:
        raise ConfigError(
            "agreement_weight needs at least 2 images in the batch of each process; enlarge batch_size, or set it to 0"
        )
    first, second = first.float(), second.float()
    variance = (_variance_term(first) + _variance_term(second)) / 2
    covariance = _covariance_term(first) + _covariance_term(second)
    return _INVARIANCE * mse_loss(first, second) + _VARIANCE * variance + _COVARIANCE * covariance


def both_views(encoder_images: Tensor, decoder_images: Tensor) -> Tensor:
    """The two views of each image (B, C, *S) in one batch (2B, C, *S), for :func:`encoding_both`."""
    if encoder_images is decoder_images:
        raise ConfigError(
            "agreement_weight needs two views of an image, but encoder_key is the decoder's image; use another "
            "encoder_key, or set agreement_weight to 0"
        )
    if encoder_images.shape != decoder_images.shape:
        raise ConfigError(
            f"agreement_weight needs two views of one shape, but the encoder's image is "
            f"{tuple(encoder_images.shape[1:])} and the decoder's {tuple(decoder_images.shape[1:])}; set "
            "agreement_weight to 0"
        )
    return torch.cat([encoder_images, decoder_images])


@contextmanager
def encoding_both(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within this context, the network encodes :func:`both_views`, and decodes with z_sem of the encoder's images.

    Both views are encoded in one forward pass, because DistributedDataParallel needs a single pass per step. The
    network may be a DistributedDataParallel. Each forward pass appends z_sem of both views (2B, Z) to the list.
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
