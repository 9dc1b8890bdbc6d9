"""Constructor arguments of networks: the widths, strides and cells that they give, and their record as a config."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec

from monai_diffae.errors import ConfigError, quoted

P = ParamSpec("P")


def keeps_config(init: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Decorate an ``__init__`` so that ``self.config`` holds its arguments, as JSON: ``type(x)(**x.config)`` equals x.

    Example:
        >>> class Layer:
        ...     @keeps_config
        ...     def __init__(self, width: int, strides: tuple[int, ...] = (2, 2)) -> None:
        ...         self.width = width
        >>> Layer(3).config
        {'width': 3, 'strides': [2, 2]}
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def init_with_config(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        _, *arguments = bound.arguments.items()
        # Not by assignment: nn.Module is not initialised yet. The outermost constructor, a subclass's, comes first.
        self.__dict__.setdefault("config", {name: _as_json(value) for name, value in arguments})
        init(self, *args, **kwargs)

    return init_with_config


def _as_json(value: Any) -> Any:
    return [_as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def level_widths(base_channels: int, channel_mult: Sequence[int], attention_levels: Sequence[int]) -> list[int]:
    """The width of every level, full resolution first."""
    widths = [base_channels * mult for mult in channel_mult]
    unknown = [level for level in attention_levels if not 0 <= level < len(widths)]
    if unknown:
        raise ConfigError(f"attention at level {unknown[0]}: there are levels 0 to {len(widths) - 1} (0 is full size)")
    return widths


def per_axis(spatial_dims: int, value: int | Sequence[int], name: str) -> tuple[int, ...]:
    """An argument that is one whole number for all axes, or one per axis."""
    each = (value,) * spatial_dims if isinstance(value, int) else tuple(value)
    if len(each) != spatial_dims or not all(isinstance(n, int) and n >= 1 for n in each):
        raise ConfigError(f"{name}={quoted(value)} is neither a whole number of 1 or more nor {spatial_dims} of them")
    return each


def level_strides(
    spatial_dims: int, num_levels: int, strides: Sequence[int | Sequence[int]] | None
) -> list[tuple[int, ...]]:
    """The strides between a network's levels, one tuple per level below the first; 2 by default, surplus is ignored."""
    if strides is None:
        return [(2,) * spatial_dims] * (num_levels - 1)
    if len(strides) < num_levels - 1:
        raise ConfigError(f"strides: there are {len(strides)}, but {num_levels} levels need {num_levels - 1}")
    each = [(s,) * spatial_dims if isinstance(s, int) else tuple(s) for s in strides[: num_levels - 1]]
    for stride in each:
        if len(stride) != spatial_dims or not set(stride) <= {1, 2}:
            raise ConfigError(f"strides: {list(stride)} must be {spatial_dims} numbers, each 1 or 2")
    return each


def strides_product(spatial_dims: int, strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The product of strides along each axis: what a size must be a multiple of so that every level can halve it."""
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

    Example:
        >>> anisotropic_strides([160, 160, 22], [1, 1, 6.5], 4)
        [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 1]]
    """
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
