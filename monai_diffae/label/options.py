"""The options of tasks, strategies and trainings: what clients see, and which keys of a request are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from monai_diffae.errors import ConfigError

FROM_VIEWERS = frozenset({
    "result_extension", "result_dtype", "result_compress", "restore_label_idx", "client_id", "label_info",
    "label_prompt", "user",
})  # fmt: skip
"""What 3D Slicer, OHIF and ``MONAILabelClient`` send with every request."""

FROM_MONAI_LABEL = frozenset({
    "model", "image", "description", "session", "session_id", "device", "logging", "timeout", "images", "multi_gpu",
    "gpus", "save_label", "label_tag", "max_workers", "max_batch_size", "local_rank", "_id", "_image_id", "image_id",
})  # fmt: skip
"""What MONAI Label itself adds to a request, in batch inference too."""


def check_keys(request: Mapping[str, Any], known: set[str], what: str) -> None:
    """Refuse keys that neither a task declares nor viewers send.

    Raises:
        ConfigError: names the first such key.

    Example:
        >>> check_keys({"model": "diffae_encode", "roi": [0, 1]}, {"slice"}, "params")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: params: 'roi' is unknown; use slice
    """
    unknown = sorted(set(map(str, request)) - known - FROM_VIEWERS - FROM_MONAI_LABEL)
    if unknown:
        raise ConfigError(f"{what}: {unknown[0][:40]!r} is unknown; use {', '.join(sorted(known)) or 'none'}")


def option_names(function: Callable[..., Any]) -> list[str]:
    """The names of a function's keyword arguments."""
    parameters = inspect.signature(inspect.unwrap(function)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def shown_options(function: Callable[..., Any]) -> dict[str, Any]:
    """The options as clients show them: the default, or a list of choices that begins with the default.

    Example:
        >>> def draw(request, *, mode: Literal["fast", "exact"] = "exact", seed: int = 0, limit: int | None = None): ...
        >>> shown_options(draw)
        {'mode': ['exact', 'fast'], 'seed': 0}
    """
    declared = inspect.unwrap(function)
    hints = get_type_hints(declared)
    shown: dict[str, Any] = {}
    for name in option_names(function):
        default = inspect.signature(declared).parameters[name].default
        if get_origin(hints[name]) is Literal:
            shown[name] = [default, *(choice for choice in get_args(hints[name]) if choice != default)]
        elif default is not None and default is not inspect.Parameter.empty:
            shown[name] = default
    return shown
