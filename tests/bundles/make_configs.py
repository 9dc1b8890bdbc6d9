"""``make configs`` writes the bundle runs of commands and the ``train.json`` of shipped weights."""

import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from monai_diffae.apps.commands import COMMANDS
from monai_diffae.bundle.description import as_json
from monai_diffae.bundle.folders import init_bundle, names_with_weights

ROOT = Path(__file__).parents[2]
_MONAI_KEYS = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir"}


def update_config(config, command):
    """The configuration of a command's bundle run with the command's arguments; formulas and other keys stay."""
    name = command.function
    before = {argument: text for argument, text in config[name].items() if argument != "_target_"}
    values, call = {}, {"_target_": f"monai_diffae.{name}"}
    for argument, parameter in inspect.signature(command.load()).parameters.items():
        call[argument] = before.get(argument, f"@{_MONAI_KEYS.get(argument, argument)}")
        key = _key(call[argument])
        is_formula = str(config.get(key, "")).startswith("$")
        if key != "bundle_root":
            values[key] = config[key] if is_formula else _plain(parameter.default)
    unused = {_key(text) for text in before.values()} - values.keys() - {"bundle_root"}
    others = {key: value for key, value in config.items() if key not in values and key not in unused}
    first = {"imports": ["$import monai_diffae.bundle as bundle"], "bundle_root": "."}
    return {**first, **values, **others, name: call}


def _key(reference):
    return reference.rpartition("@")[2].rstrip(")")


def _plain(value):
    if value is inspect.Parameter.empty:
        return "???"
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def update_command_configs(bundle):
    """Update the configurations of all commands in a bundle's ``configs``; returns their files."""
    files = set()
    for command in sorted(COMMANDS, key=lambda command: command.function == "reconstruct"):  # its arguments come first
        file = bundle / "configs" / (command.config or "none")
        config = json.loads(file.read_text()) if file.is_file() else {}
        if command.function in config:  # a first stage has an inference.json of its own
            file.write_text(as_json(update_config(config, command)))
            files.add(file)
    return files


def write_training_config(bundle):
    """Write the ``train.json`` of a bundle shipped with weights: its recipe's, with the values of its description."""
    with TemporaryDirectory() as folder:
        recipe = init_bundle(folder, bundle / "models" / "model.safetensors")
        shutil.copyfile(recipe / "configs" / "train.json", bundle / "configs" / "train.json")


if __name__ == "__main__":
    for folder in (ROOT / "bundles").iterdir():
        update_command_configs(folder)
        if folder.name in names_with_weights():
            write_training_config(folder)
