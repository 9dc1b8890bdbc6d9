"""Commands as a shell reads them: a name and Python arguments become one line."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from monai_diffae.apps.commands import COMMANDS


def command_line(name: str, arguments: Mapping[str, Any]) -> str:
    """The line for a shell that calls a command with these arguments, without those that are None, False or empty.

    Example:
        >>> command_line("embed", {"bundle": "my model", "cohort": "scans.csv", "out": "results", "batch_size": 8})
        "monai-diffae embed 'my model' scans.csv results --batch-size 8"
        >>> command_line("train", {"bundle": "m", "cohort": "s.csv", "overrides": {"image_size": [32, 32]}})
        "monai-diffae train m s.csv --overrides 'image_size=[32,32]'"
    """
    command = next(command for command in COMMANDS if command.name == name)
    words = ["monai-diffae", name]
    # the arguments that need no name stand first
    for key, parameter in inspect.signature(command.load()).parameters.items():
        value = arguments.get(key)
        if value is None or value is False or value in ((), [], {}):
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            words.append(f"--{key.replace('_', '-')}")
        words += _words(value)
    return shlex.join(words)


def _words(value: Any) -> Iterator[str]:
    if value is True:
        return
    if isinstance(value, Mapping):
        yield from (f"{key}={_as_typed(each)}" for key, each in value.items())
    elif isinstance(value, (list, tuple)):
        yield from map(str, value)
    else:
        yield str(value)


def _as_typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
