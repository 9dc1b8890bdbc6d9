"""Images estimated from noisy versions of themselves and their z_sem: details that noise hides come from the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError
from monai_diffae.inferers.autoencoding import DiffusionAutoencoderInferer
from monai_diffae.inferers.exact_encoding import images_at_once
from monai_diffae.networks.threads import evaluation_work, threads_for


@torch.no_grad()
def estimate_from_noised(
    images: Tensor,
    z_sem: Tensor,
    network: nn.Module,
    inferer: DiffusionAutoencoderInferer,
    *,
    noise_levels: Sequence[float] = (0.3,),
    draws: int = 8,
    seed: int = 0,
) -> Tensor:
    """Estimate each image from noisy versions of itself and its z_sem.

    The network's x0 at one noise level is the mean of all images that fit the noisy image and z_sem. So one evaluation
    gives what the mean over many sampled reconstructions would approach. Conditioned DDPMs (Behrendt et al., arXiv
    2312.04215) and ANDi (Frotscher et al., arXiv 2312.01904) use it in place of AnoDDPM's sampling (Wyatt et al. 2022).

    An image is processed on its own, so its estimate is the same to the bit whatever the other images are.

    Args:
        images: (N, C, *S) in the model's range, on the network's device.
        z_sem: (N, D).
        network: the autoencoder, in evaluation mode.
        inferer: the inferer with the schedule and, in latent mode, the first stage.
        noise_levels: the share of all timesteps, above 0 and up to 1, at which images are noised; 1 keeps z_sem only.
        draws: noises per level. They are functions of the seed, the level and the draw, and equal for all images.
        seed: random seed.

    Returns:
        The means over all draws, (N, C, *S) in float32.

    Raises:
        ConfigError: a level or ``draws`` is out of range.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> from monai_diffae.networks import build_autoencoder
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> images, inferer = torch.zeros(2, 1, 16, 16), DiffusionAutoencoderInferer(DiffusionSchedule())
        >>> estimate_from_noised(images, inferer.encode(images, network.eval()), network, inferer, draws=2).shape
        torch.Size([2, 1, 16, 16])
    """
    if not all(0 < level <= 1 for level in noise_levels) or draws < 1:
        raise ConfigError("noise_levels must be above 0 and at most 1, and draws at least 1")
    schedule, first_stage = inferer.schedule, inferer.first_stage
    dtype = next(network.parameters()).dtype
    shape = inferer.x_T_shape(images.shape[1:])
    timesteps = [max(round(level * schedule.num_train_timesteps) - 1, 0) for level in noise_levels]
    noises = {t: image_noise(shape, seed_of(seed, t), list(range(draws))).to(images.device) for t in timesteps}

    def estimate(image: Tensor, code: Tensor) -> Tensor:
        x_0 = image if first_stage is None else first_stage.encode(image)
        total = torch.zeros_like(image, dtype=torch.float32)
        for t, noise in noises.items():
            for eps in noise.split(images_at_once(shape[1:])):
                timesteps, codes = torch.full((len(eps),), t, device=eps.device), code.to(dtype).expand(len(eps), -1)
                x_t = schedule.q_sample(x_0.expand_as(eps), eps, timesteps)
                with threads_for(evaluation_work(network, x_t), x_t.device):
                    output = network(x_t.to(dtype), timesteps, codes)
                estimates, _ = schedule.to_x0_eps(output, x_t, timesteps, inferer.clip_range)
                decoded = estimates if first_stage is None else first_stage.decode(estimates)
                total += decoded.sum(dim=0, keepdim=True)
        return total / (draws * len(noises))

    return torch.cat([estimate(image, code) for image, code in zip(images.split(1), z_sem.split(1), strict=True)])
