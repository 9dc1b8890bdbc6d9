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

MONAI_KEYS = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir"}
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
    values, call = keys_and_call(function, command_keys(command))
    return {
        "imports": ["$import monai_diffae.bundle as bundle"],
        "bundle_root": ".",
        **values,
        name: {"_target_": f"monai_diffae.{name}", **call},
        "initialize": ["$bundle.check_running_config()"],
        "run": f"%{name}",
    }


def command_keys(command: Command) -> dict[str, str]:
    """The arguments of a command whose keys differ; ``output_dir`` is a folder, so a file is still called ``out``."""
    return {argument: key for argument, key in MONAI_KEYS.items() if argument != "out" or not command.writes_a_file}


def keys_and_call(function: Callable[..., Any], names: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a function's arguments with their defaults, and the arguments of the call that refer to these keys.

    ``names`` are keys of arguments that have another name in the configuration.
    """
    values: dict[str, Any] = {}
    call: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        settings = parameter.default
        is_settings = is_dataclass(settings)
        defaults = {f.name: getattr(settings, f.name) for f in fields(settings)} if is_settings else {name: settings}
        for argument, default in defaults.items():
            key = names.get(argument, argument)
            call[argument] = f"@{key}"
            if key != "bundle_root":
                values[key] = "???" if default is inspect.Parameter.empty else _plain(default)
    return values, call


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def write_command_configs(bundle: Path) -> list[Path]:
    """Write the configurations of all commands into a bundle's ``configs``; for a first stage, that of ``export``."""
    from monai_diffae.apps.inference_config import evaluation_config, inference_config

    with_model = {"inference.json": inference_config, "evaluate.json": evaluation_config}
    is_first_stage = "inferer" not in json.loads((bundle / "configs" / "train.json").read_text())

    files = []
    for command in COMMANDS:
        if command.config is not None and (command.name == "export" or not is_first_stage):
            make = with_model.get(command.config)
            config = command_config(command) if make is None else make(command, bundle)
            file = bundle / "configs" / command.config
            file.write_text(as_json(config))
            files.append(file)
    return files


def as_json(value: Any, indent: str = "") -> str:
    """A configuration as the text of its file: lists of plain values are on one line.

    Example:
        >>> print(as_json({"image_size": [64, 64], "embed": {"pool": "@pool"}}), end="")
        {
            "image_size": [64, 64],
            "embed": {
                "pool": "@pool"
            }
        }
    """
    inner = f"{indent}    "
    if isinstance(value, dict) and value:
        lines, (start, end) = [f"{json.dumps(key)}: {as_json(item, inner)}" for key, item in value.items()], "{}"
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        lines, (start, end) = [as_json(item, inner) for item in value], "[]"
    else:
        return json.dumps(value)
    text = f",\n{inner}".join(lines)
    return f"{start}\n{inner}{text}\n{indent}{end}" + ("" if indent else "\n")


if __name__ == "__main__":  # make configs
    for folder in map(Path, sys.argv[1:]):
        if (folder / "configs" / "train.json").is_file():  # bundles with weights use those of another one
            write_command_configs(folder)
