"""What makes a function a command: its annotations are checked when it is called, from whichever door."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from pydantic import ConfigDict, ValidationError, validate_call

from monai_diffae.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

_CHECKS = ConfigDict(extra="forbid", revalidate_instances="always", arbitrary_types_allowed=True)


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Check and convert a function's arguments by its annotations before it runs.

    A text becomes a ``Path``, a mapping a settings dataclass of :mod:`monai_diffae.apps.settings`. The command line, a
    bundle run and Python code therefore accept the same values and report the same errors.

    Raises:
        ConfigError: (by the decorated function) an argument is missing, unknown, or has a value that it cannot take.

    Example:
        >>> from typing import Annotated
        >>> from annotated_types import Ge
        >>> @command
        ... def draw(num_images: Annotated[int, Ge(1)] = 16) -> int:
        ...     return num_images
        >>> draw(num_images=0)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: num_images: 0 is below 1
    """

    @functools.wraps(function)
    def arguments(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    @functools.cache
    def check() -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        return validate_call(arguments, config=_CHECKS)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            checked_args, checked_kwargs = check()(*args, **kwargs)
        except ValidationError as error:
            raise ConfigError(_one_line(error, function)) from None
        return function(*checked_args, **checked_kwargs)

    return run


def _one_line(error: ValidationError, function: Callable[..., Any]) -> str:
    details = error.errors()[0]
    names = list(function.__code__.co_varnames)  # type: ignore[attr-defined]
    first, *rest = details["loc"]
    # a positional argument is reported by its place; below a settings dataclass only the field's name is an argument
    path = [names[first] if isinstance(first, int) else str(first), *(str(part) for part in rest)]
    fields = [part for part in path if part.isidentifier()]
    name, value, context = fields[min(1, len(fields) - 1)], details["input"], details.get("ctx", {})
    kind = details["type"]
    if kind in ("unexpected_keyword_argument", "unexpected_positional_argument"):
        return f"{name}: {function.__name__} takes no such argument"
    if kind in ("missing", "missing_argument"):
        return f"{name}: is required; give it a value"
    reasons = {
        "literal_error": lambda: f"is not one of {str(context['expected']).replace(chr(39), '').replace(' or ', ', ')}",
        "greater_than_equal": lambda: f"is below {context['ge']:g}",
        "greater_than": lambda: f"is not above {context['gt']:g}",
        "less_than_equal": lambda: f"is above {context['le']:g}",
        "less_than": lambda: f"is not below {context['lt']:g}",
    }
    reason = reasons[kind]() if kind in reasons else f"cannot be used: {details['msg'][0].lower()}{details['msg'][1:]}"
    return f"{name}: {value!r} {reason}"
