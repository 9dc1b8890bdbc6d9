"""Strides: the factors by which each level of a network is smaller than the level above, per axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai_diffae.errors import ConfigError


def level_strides(
    spatial_dims: int, num_levels: int, strides: Sequence[int | Sequence[int]] | None
) -> list[tuple[int, ...]]:
    """The strides between a network's levels, one tuple per level below the first; 2 everywhere by default.

    Entries are numbers, or one number per axis. Surplus ones are ignored, because the encoder of a diffusion
    autoencoder usually has one level more than its UNet.

    Example:
        >>> level_strides(3, 3, [(2, 2, 1), 2])
        [(2, 2, 1), (2, 2, 2)]
    """
    if strides is None:
        return [(2,) * spatial_dims] * (num_levels - 1)
    if len(strides) < num_levels - 1:
        raise ConfigError(f"strides: there are {len(strides)}, but {num_levels} levels need {num_levels - 1}")
    each = [(s,) * spatial_dims if isinstance(s, int) else tuple(s) for s in strides[: num_levels - 1]]
    for stride in each:
        if len(stride) != spatial_dims or not set(stride) <= {1, 2}:
            raise ConfigError(f"strides: {list(stride)} must be {spatial_dims} numbers, each 1 or 2")
    return each


def size_divisors(spatial_dims: int, strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What each spatial size must be a multiple of, for these strides.

    Example:
        >>> size_divisors(3, [(2, 2, 1), (2, 2, 2)])
        (4, 4, 2)
    """
    return tuple(math.prod(stride[axis] for stride in strides) for axis in range(spatial_dims))


def anisotropic_strides(image_size: Sequence[int], spacing_mm: Sequence[float], count: int) -> list[list[int]]:
    """Strides that first bring all axes to comparable spacings, and then halve all of them.

    At each level, an axis is halved if its spacing is less than twice the finest spacing, as in nnU-Net (Isensee et
    al. 2021, doi:10.1038/s41592-020-01008-z), and if its size can be halved to 2 or more. So an axis of thick slices
    keeps its size until the voxels are about as large along the other axes, and a volume of 22 slices needs no padding.

    Args:
        image_size: voxels along each axis.
        spacing_mm: millimetres between voxels along each axis; only the ratios matter.
        count: number of strides, one less than the levels of the deepest network.

    Raises:
        ConfigError: the two have different lengths, or a value is not positive.

    Example:
        >>> anisotropic_strides([160, 160, 22], [1, 1, 6.5], 4)
        [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 1]]
    """
    if len(image_size) != len(spacing_mm) or not all(v > 0 for v in (*image_size, *spacing_mm)):
        raise ConfigError(
            f"image_size {list(image_size)} and spacing_mm {list(spacing_mm)} must be positive numbers, one per axis"
        )
    sizes, spacings = list(image_size), [float(v) for v in spacing_mm]
    strides = []
    for _ in range(count):
        can_halve = [size % 2 == 0 and size >= 4 for size in sizes]
        finest = min((s for s, possible in zip(spacings, can_halve, strict=True) if possible), default=math.inf)
        stride = [2 if possible and s < 2 * finest else 1 for s, possible in zip(spacings, can_halve, strict=True)]
        sizes = [size // step for size, step in zip(sizes, stride, strict=True)]
        spacings = [s * step for s, step in zip(spacings, stride, strict=True)]
        strides.append(stride)
    return strides
