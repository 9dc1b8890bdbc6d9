"""The constructor arguments of a network as its ``config``: the signature is the only place that lists them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

P = ParamSpec("P")


def keeps_config(init: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Decorate an ``__init__`` so that ``self.config`` holds its arguments, defaults included.

    Sequences become lists, as in JSON. ``type(network)(**network.config)`` builds an equal network. The constructor
    may replace entries of ``self.config`` by what it made of them.

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
