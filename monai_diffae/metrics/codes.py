"""What codes say: is x_T noise, does the decoder use z_sem, and how do changes of an image change z_sem?"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.policies import Range

_AXES = {2: ("up-down", "left-right"), 3: ("left-right", "front-back", "up-down")}  # axes of volumes are in RAS order


def noise_statistics(x_T: Tensor) -> dict[str, Tensor]:
    """Mean, standard deviation and neighbor correlation of stochastic codes (B, C, *S): 0, 1 and 0 for Gaussian noise.

    A code with another standard deviation, or one in which neighboring voxels are correlated, still encodes image
    structure. It decodes well with its own z_sem, but not with an edited one. The results are ``mean``, ``std`` and
    ``neighbor_correlation``, each (B,) float32; NaN where they are not defined.

    Example:
        >>> noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> {name: f"{abs(float(value)):.1f}" for name, value in noise_statistics(noise).items()}
        {'mean': '0.0', 'std': '1.0', 'neighbor_correlation': '0.0'}
    """
    x_T = x_T.detach().float()
    mean, std = x_T.flatten(1).mean(dim=1), x_T.flatten(1).std(dim=1)
    centred = x_T - mean.view(-1, *[1] * (x_T.ndim - 1))
    products = [
        (centred.narrow(axis, 1, x_T.shape[axis] - 1) * centred.narrow(axis, 0, x_T.shape[axis] - 1)).flatten(1)
        for axis in range(2, x_T.ndim)
        if x_T.shape[axis] > 1
    ]
    variance = centred.square().flatten(1).mean(dim=1)
    covariance = torch.stack([p.mean(dim=1) for p in products]).mean(dim=0) if products else variance * torch.nan
    correlation = covariance / variance
    return {"mean": mean, "std": std, "neighbor_correlation": correlation}


@torch.no_grad()
def level_losses(
    x0: Tensor,
    network: nn.Module,
    codes: Mapping[str, Tensor],
    inferer: DiffusionAutoencoderInferer,
    timestep: int,
    noise: Tensor,
) -> dict[str, Tensor]:
    """The denoising loss (B,) of images or latents ``x0`` (B, C, *S) with several z_sem (B, D) in turn, by name.

    The noisy image, at ``timestep`` in [0, T) with ``noise`` (B, C, *S), is the same for all of them, so losses differ
    because of z_sem only. The loss is the unweighted one of the training.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> from monai_diffae.networks import build_autoencoder
        >>> network = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
        >>> x0, codes = torch.zeros(2, 1, 16, 16), {"own": torch.zeros(2, 4)}
        >>> inferer = DiffusionAutoencoderInferer(DiffusionSchedule())
        >>> level_losses(x0, network.eval(), codes, inferer, 500, torch.randn_like(x0))["own"].shape
        torch.Size([2])
    """
    t = torch.full((len(x0),), timestep, device=x0.device)
    target = inferer.schedule.target(x0, noise, t)
    outputs = {
        name: inferer(x0, network, noise=noise, timesteps=t, condition=z_sem.to(x0)) for name, z_sem in codes.items()
    }
    return {name: (output.float() - target).square().flatten(1).mean(dim=1) for name, output in outputs.items()}


def changed_views(images: Tensor, noise: Tensor, model_range: Range = (-1.0, 1.0)) -> dict[str, Tensor]:
    """Images (B, C, *S) changed in several ways, by the name of the change: flipped, noised, shifted, scaled.

    2D images are as a radiologist sees them, volumes in RAS order. ``noise`` is standard normal and added with 1 and 5
    % of the range; values beyond ``model_range`` are clipped, as by the preprocessing.

    Example:
        >>> views = changed_views(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
        >>> list(views)[:4]
        ['flip up-down', 'flip left-right', 'noise 1 %', 'noise 5 %']
    """
    low, high = model_range
    axes = dict(enumerate(_AXES[images.ndim - 2], start=2))
    views = {f"flip {name}": images.flip(axis) for axis, name in axes.items()}
    views |= {f"noise {share} %": images + share / 100 * (high - low) * noise for share in (1, 5)}
    for n in (1, 2):
        for axis, name in axes.items():  # the border is repeated
            sources = (torch.arange(images.shape[axis], device=images.device) - n).clamp(min=0)
            views[f"shift {n} {name}"] = images.index_select(axis, sources)
    views |= {f"intensity x {scale}": low + scale * (images - low) for scale in (0.9, 1.1)}
    return {name: view.clamp(low, high) for name, view in views.items()}
