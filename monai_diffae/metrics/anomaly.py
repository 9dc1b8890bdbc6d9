"""Anomaly maps and scores from residuals, relative to the residuals of held-out cases."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.layers import GaussianFilter
from numpy.typing import NDArray
from torch import Tensor

_SPREAD_SIGMA = 1.0  # voxels; the spread of few cases is noisy


def smoothed_residuals(images: Tensor, reconstructions: Tensor, sigma: float) -> Tensor:
    """The size of the smoothed difference of images and reconstructions (N, C, *S): (N, 1, *S), at least 0.

    The signed difference is smoothed by ``sigma`` voxels, so that noise averages out while a region that is brighter or
    darker stays. The size is the root of the mean square over the channels.

    Example:
        >>> smoothed_residuals(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), sigma=0).mean()
        tensor(1.)
    """
    return _smoothed(images.float() - reconstructions.float(), sigma).square().mean(dim=1, keepdim=True).sqrt()


def residual_spread(mean_squares: Tensor, floor: float) -> Tensor:
    """The spread that residuals are divided by, (1, *S), from the mean (1, *S) over normal cases of their squares.

    ``floor`` is the share of the mean variance of all voxels that is added to each, so that a voxel that never varies,
    such as background, does not turn a tiny residual into a large value.

    Example:
        >>> round(float(residual_spread(torch.full((1, 8, 8), 3.0), floor=1 / 3).max()), 4)
        2.0
    """
    variance = _smoothed(mean_squares[None], _SPREAD_SIGMA)[0]
    # at the border, MONAI's filter averages with zeros from outside
    variance = variance / _smoothed(torch.ones_like(mean_squares)[None], _SPREAD_SIGMA)[0]
    return (variance + floor * variance.mean()).clamp(min=torch.finfo(variance.dtype).tiny).sqrt()


def anomaly_maps(residuals: Tensor, spread: Tensor, sigma: float) -> Tensor:
    """Residuals (N, 1, *S) divided by their spread (1, *S), smoothed once more.

    Example:
        >>> anomaly_maps(torch.full((1, 1, 8, 8), 3.0), torch.full((1, 8, 8), 1.5), sigma=0).max()
        tensor(2.)
    """
    return _smoothed(residuals / spread, sigma)


def cross_fitted_maps(residuals: Tensor, groups: Sequence[int], floor: float, sigma: float) -> Tensor:
    """The :func:`anomaly_maps` (n, 1, *S) of residuals (n, 1, *S), each with a spread fitted without its own group.

    A group, of at least two, is such as a patient. The values are those of unseen cases; with a spread that was fitted
    to the cases themselves, they would be too low, and every new case would look unusual.

    Example:
        >>> residuals = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
        >>> cross_fitted_maps(residuals, [0, 1], floor=0, sigma=0)[:, 0, 0, 0]
        tensor([0.5000, 2.0000])
    """
    members = torch.tensor(groups, device=residuals.device)
    squares = residuals.square()
    total, maps = squares.sum(dim=0, dtype=torch.float64), torch.empty_like(residuals)
    for group in members.unique():
        own = members == group
        others = (total - squares[own].sum(dim=0, dtype=torch.float64)).clamp(min=0) / (~own).sum()
        maps[own] = anomaly_maps(residuals[own], residual_spread(others.float(), floor), sigma)
    return maps


def highest_mean(maps: Tensor, fraction: float) -> Tensor:
    """The score of each map: the mean of the highest ``fraction`` of its values, (N,).

    Example:
        >>> highest_mean(torch.arange(100.0).view(1, 1, 10, 10), 0.02)
        tensor([98.5000])
    """
    values = maps.flatten(1)
    count = max(1, round(fraction * values.shape[1]))
    return values.topk(count, dim=1).values.mean(dim=1)


def mask_scores(
    maps: NDArray[np.floating[Any]], detected: NDArray[np.bool_], reference: NDArray[np.bool_]
) -> dict[str, float]:
    """How well a map ``[N]`` of voxels, and those that are detected, agree with a reference mask.

    Returns:
        ``auroc`` and ``auprc`` (average precision) of the map, and ``dice`` of the detected voxels; nothing if the
        reference holds all voxels or none.

    Example:
        >>> mask_scores(np.array([0.1, 0.4, 0.3, 0.9]), np.array([0, 1, 0, 1]) > 0, np.array([0, 0, 0, 1]) > 0)
        {'auroc': 1.0, 'auprc': 1.0, 'dice': 0.666...}
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if reference.all() or not reference.any():
        return {}
    dice = 2 * (detected & reference).sum() / (detected.sum() + reference.sum())
    scores = roc_auc_score(reference, maps), average_precision_score(reference, maps), dice
    return dict(zip(("auroc", "auprc", "dice"), map(float, scores), strict=True))


def _smoothed(images: Tensor, sigma: float) -> Tensor:
    """Images (N, C, *S), each smoothed on its own, so that the result does not depend on the others."""
    if sigma == 0:
        return images
    smooth = GaussianFilter(images.ndim - 2, sigma).to(images.device)
    return torch.cat([smooth(image) for image in images.split(1)])
