"""Statistics that tell whether an inverted x_T is Gaussian noise, as the decoder expects and as editing needs."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_statistics(x_T: Tensor) -> dict[str, Tensor]:
    """Mean, standard deviation and neighbor correlation of each stochastic code: 0, 1 and 0 for Gaussian noise.

    A code with another standard deviation, or one in which neighboring voxels are correlated, still encodes image
    structure. It decodes well with its own z_sem, but not with an edited one.

    Args:
        x_T: stochastic codes (B, C, *S), with at least one spatial axis.

    Returns:
        ``mean``, ``std`` and ``neighbor_correlation`` (over voxels, not over channels), each (B,) float32. Statistics
        that are not defined, such as those of a code with a single voxel or a single value, are NaN.

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
