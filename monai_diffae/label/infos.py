"""Checks of what clients store beside an image or a label: a JSON object that the server can send back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from monai_diffae.errors import ConfigError

_STRATEGY = "strategy"  # where MONAI Label notes which strategy proposed an image, and when


def check_infos(arguments: Mapping[str, Any]) -> None:
    """Check the arguments ``params`` and ``info`` of a request; MONAI Label (0.8.5) stores whatever they hold.

    A number such as NaN, which JSON does not have, would make every later list of the images fail.

    Raises:
        ConfigError: an argument is not the text of a JSON object, holds something that JSON cannot hold, or replaces
            the times of proposals by something else.

    Example:
        >>> check_infos({"params": '{"class": NaN}'})
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: params: is not valid JSON; send a JSON object
    """
    for name in ("params", "info"):
        if arguments.get(name):
            _check_info(read_object(str(arguments[name]), name), name)


def read_object(text: str, name: str) -> dict[str, Any]:
    """Read the text of a JSON object.

    Args:
        text: the text.
        name: the argument's name, for the message.

    Raises:
        ConfigError: it is something else, or has values that JSON cannot hold (NaN, half a Unicode character).
    """
    try:
        content = json.loads(text)
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: is not valid JSON; send a JSON object") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: must be a JSON object; send {{}} for none")
    return content


def _check_info(info: Mapping[str, Any], name: str) -> None:
    strategies = info.get(_STRATEGY, {})
    entries = list(strategies.values()) if isinstance(strategies, dict) else [None]
    if not all(isinstance(entry, dict) and type(entry.get("ts", 0)) is int for entry in entries):
        raise ConfigError(f"{name}: {_STRATEGY!r} holds the times of proposals, which the server writes; omit it")
