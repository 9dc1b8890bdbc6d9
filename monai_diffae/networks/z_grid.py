"""The grid of cells that z_sem describes: features are averaged over cells, and cells are drawn over features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Pool
from torch import nn

from monai_diffae.errors import ConfigError, quoted
from monai_diffae.networks.blocks import zero_initialised


def grid_cells(spatial_dims: int, z_grid: int | Sequence[int]) -> tuple[int, ...]:
    """The number of cells per axis that z_sem is read from.

    Example:
        >>> grid_cells(3, 2), grid_cells(3, [2, 3, 2])
        ((2, 2, 2), (2, 3, 2))
    """
    cells = (z_grid,) * spatial_dims if isinstance(z_grid, int) else tuple(z_grid)
    if len(cells) != spatial_dims or not all(isinstance(n, int) and n >= 1 for n in cells):
        raise ConfigError(f"z_grid={quoted(z_grid)} is neither a whole number of 1 or more nor {spatial_dims} of them")
    return cells


class CellMeans(nn.Module):
    """Averages a feature map over cells, which overlap if their number does not divide the size of the features.

    Example:
        >>> CellMeans((2, 2))(torch.arange(16.0).view(1, 1, 4, 4)).tolist()
        [[[[2.5, 4.5], [10.5, 12.5]]]]
    """

    def __init__(self, cells: Sequence[int]) -> None:
        super().__init__()
        self.cells = list(cells)
        self.pool = Pool[Pool.ADAPTIVEAVG, len(cells)](tuple(cells))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *S) -> (B, C, *cells)."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript would compile a second condition
            if _needs_products(x):
                each = [overlaps(n, size, x) for n, size in zip(self.cells, x.shape[2:], strict=True)]
                return _along_axes(x, each)
        return self.pool(x)


class ZMap(nn.Module):
    """Adds a coarse map that is linear in z_sem to a feature map; untrained, it is the identity.

    A cell is repeated over the features that it covers; a feature that covers several cells gets their mean.

    Example:
        >>> x, z_map = torch.randn(1, 32, 8, 8), ZMap(32, 16, cells=(4, 4))
        >>> bool((z_map(x, z_map.values(torch.randn(1, 16))) == x).all())
        True
    """

    def __init__(self, channels: int, z_channels: int, cells: Sequence[int]) -> None:
        super().__init__()
        self.shape = [channels, *cells]
        self.linear = zero_initialised(nn.Linear(z_channels, math.prod(self.shape)))

    def values(self, z_sem: torch.Tensor) -> torch.Tensor:
        """The map (B, C, *cells) of z_sem (B, z_channels); the same for all time steps."""
        return self.linear(z_sem).unflatten(1, self.shape)

    def forward(self, x: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """(B, C, *S), (B, C, *cells) of :meth:`values` -> (B, C, *S)."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript would compile a second condition
            if _needs_products(x):
                each = [overlaps(n, size, x).mT for n, size in zip(self.shape[1:], x.shape[2:], strict=True)]
                return x + _along_axes(cells, each)
        return x + F.interpolate(cells, size=x.shape[2:], mode="area").to(x.dtype)


def overlaps(num_cells: int, num_features: int, like: torch.Tensor) -> torch.Tensor:
    """Which of the features along an axis each cell covers, as PyTorch's adaptive pooling divides them: 1 or 0, (N, F).

    Adaptive pooling cannot be exported for a free size, and its gradient on a GPU adds numbers in any order. Products
    with these matrices can be exported, are the same to the bit each time, and give the same means.

    Example:
        >>> overlaps(2, 5, torch.zeros(1)).tolist()
        [[1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0]]
    """
    cell = torch.arange(num_cells, device=like.device)[:, None]
    feature = torch.arange(num_features, device=like.device)[None]
    starts = cell * num_features < (feature + 1) * num_cells
    goes_on = feature * num_cells < (cell + 1) * num_features
    return (starts & goes_on).to(like.dtype)


def _needs_products(x: torch.Tensor) -> bool:
    """Whether products with :func:`overlaps` replace PyTorch's adaptive pooling."""
    return torch.compiler.is_exporting() or x.is_cuda


def _along_axes(x: torch.Tensor, members: Sequence[torch.Tensor]) -> torch.Tensor:
    """Means along each spatial axis of (B, C, *S), over the members that a matrix (new size, size) marks with 1."""
    for axis, matrix in enumerate(members, 2):
        weights = matrix / matrix.sum(dim=1, keepdim=True)
        x = (x.transpose(axis, -1) @ weights.mT).transpose(axis, -1)
    return x
