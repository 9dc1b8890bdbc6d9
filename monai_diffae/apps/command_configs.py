"""The bundle runs of the commands: their JSON is generated from the commands' signatures."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from monai_diffae.apps.commands import COMMANDS, Command

_MONAI_KEYS = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir"}
"""Arguments whose keys in a bundle's configuration are MONAI's."""


def command_config(command: Command) -> dict[str, Any]:
    """The configuration of a command's bundle run: one key per argument, and the call.

    Example:
        >>> from monai_diffae.apps.commands import COMMANDS
        >>> embed = next(command for command in COMMANDS if command.name == "embed")
        >>> config = command_config(embed)
        >>> config["pool"], config["embed"]["pool"], config["run"]
        ('none', '@pool', '%embed')
    """
    function = command.declared()
    name = function.__name__
    values, call = _keys_and_call(function)
    return {
        "imports": ["$import monai_diffae.bundle as bundle"],
        "bundle_root": ".",
        **values,
        name: {"_target_": f"monai_diffae.{name}", **call},
        "initialize": ["$bundle.check_running_config()"],
        "run": f"%{name}",
    }


def _keys_and_call(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a function's arguments with their defaults, and the arguments that refer to these keys."""
    values: dict[str, Any] = {}
    call: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        settings = parameter.default
        is_settings = is_dataclass(settings)
        defaults = {f.name: getattr(settings, f.name) for f in fields(settings)} if is_settings else {name: settings}
        for argument, default in defaults.items():
            key = _MONAI_KEYS.get(argument, argument)
            call[argument] = f"@{key}"
            if key != "bundle_root":
                values[key] = "???" if default is inspect.Parameter.empty else _plain(default)
    return values, call


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def write_command_configs(bundle: Path) -> list[Path]:
    """Write the configurations of all commands into a bundle's ``configs``.

    Returns:
        The files.
    """
    files = []
    for command in COMMANDS:
        if command.config is not None:
            file = bundle / "configs" / command.config
            file.write_text(as_json(command_config(command)))
            files.append(file)
    return files


def as_json(config: Mapping[str, Any]) -> str:
    """A configuration as the text of its file: one line per key, the call on several."""
    lines = []
    for key, value in config.items():
        text = json.dumps(value, indent=4 if isinstance(value, dict) and value else None)
        lines.append(f"    {json.dumps(key)}: " + text.replace("\n", "\n    "))
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":  # make configs
    for folder in sys.argv[1:]:
        write_command_configs(Path(folder))
