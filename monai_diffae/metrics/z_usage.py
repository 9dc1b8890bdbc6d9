"""Whether the decoder uses z_sem: the denoising loss with different z_sem, and a warning if that hardly matters."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_diffae.inferers import DiffusionAutoencoderInferer

logger = logging.getLogger(__name__)

LEAST_USAGE = 1.1
"""The ``z_sem_usage`` below which embeddings and edits are hardly worth anything."""


def warn_if_unused(z_sem_usage: float | None) -> None:
    """Log a warning if the decoder does hardly worse with the z_sem of another image.

    Args:
        z_sem_usage: the denoising loss with another image's z_sem, divided by that with the image's own; None: unknown.

    Example:
        >>> warn_if_unused(1.3)  # logs nothing
    """
    if z_sem_usage is not None and z_sem_usage < LEAST_USAGE:
        logger.warning(
            "z_sem_usage %.3f: the decoder hardly uses z_sem, so embeddings and edits say little; train longer, or "
            "with fewer, larger pixels (monai-diffae plan)",
            z_sem_usage,
        )


@torch.no_grad()
def level_losses(
    x0: Tensor,
    codes: Mapping[str, Tensor],
    network: nn.Module,
    inferer: DiffusionAutoencoderInferer,
    timestep: int,
    noise: Tensor,
) -> dict[str, Tensor]:
    """The denoising loss of each image with several z_sem in turn.

    The noisy image is the same for all of them, so losses differ because of z_sem only. The loss is the unweighted one
    of the training: the squared error of the schedule's target.

    Args:
        x0: (B, C, *S), images, or their latents if the model has a first stage.
        codes: z_sem (B, D) by name, such as the images' own and those of other images.
        network: the autoencoder, in evaluation mode.
        inferer: the inferer with the schedule.
        timestep: the noise level, in [0, T).
        noise: eps (B, C, *S).

    Returns:
        For each name in ``codes``, the loss of each image, (B,) float32.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> from monai_diffae.networks import build_autoencoder
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> x0, codes = torch.zeros(2, 1, 16, 16), {"own": torch.zeros(2, 4)}
        >>> inferer = DiffusionAutoencoderInferer(DiffusionSchedule())
        >>> level_losses(x0, codes, network.eval(), inferer, 500, torch.randn_like(x0))["own"].shape
        torch.Size([2])
    """
    t = torch.full((len(x0),), timestep, device=x0.device)
    target = inferer.schedule.target(x0, noise, t)
    outputs = {
        name: inferer(x0, network, noise=noise, timesteps=t, condition=z_sem.to(x0)) for name, z_sem in codes.items()
    }
    return {name: (output.float() - target).square().flatten(1).mean(dim=1) for name, output in outputs.items()}
