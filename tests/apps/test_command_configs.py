"""The bundle runs of the commands are those that their signatures give, and JSON names packages only."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import pydoc
import re
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from monai_diffae.apps.command_configs import command_config, write_command_configs
from monai_diffae.apps.commands import COMMANDS

ROOT = Path(__file__).parents[2]
BUNDLES = [ROOT / "bundles" / name for name in ("diffae_2d", "diffae_3d")]
RUNS = [command for command in COMMANDS if command.config is not None]
GENERATED = [command for command in RUNS if command.config != "inference.json"]  # which has the bundle's model, too
JSON_FILES = sorted([*ROOT.glob("bundles/*/configs/*.json"), *ROOT.glob("configs/*.json")])


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def generated(request, tmp_path_factory):
    """A shipped bundle, and a copy of it for which the files are generated again."""
    copy = shutil.copytree(request.param, tmp_path_factory.mktemp("bundle") / request.param.name)
    return request.param, copy, write_command_configs(copy)


def test_the_shipped_files_are_current(generated):
    bundle, copy, files = generated
    assert {file.name for file in files} == {command.config for command in RUNS}
    for file in files:
        shipped = (bundle / file.relative_to(copy)).read_text(encoding="utf-8")
        assert shipped == file.read_text(encoding="utf-8"), f"{file.name}: run make configs"


def test_a_first_stage_has_the_run_of_export_only(tmp_path):
    bundle = ROOT / "bundles" / "autoencoder_kl_3d"
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (file,) = write_command_configs(copy)
    assert file.read_bytes() == (bundle / "configs" / "export.json").read_bytes()


def test_generated_files_are_json_with_one_line_per_key(generated):
    for file in generated[2]:
        text = file.read_text(encoding="utf-8")
        config = json.loads(text)
        lines = [line for line in text.splitlines() if line.startswith('    "')]
        assert [json.loads(line.strip().split(": ")[0]) for line in lines] == list(config)


@pytest.mark.parametrize("command", GENERATED, ids=lambda command: command.name)
def test_every_argument_is_a_key_of_its_name_and_reaches_the_function(command):
    config = command_config(command)
    name = command.declared().__name__
    keys = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir"}
    call = config[name]
    arguments: dict[str, object] = {}
    for argument, parameter in inspect.signature(command.declared()).parameters.items():
        settings = parameter.default
        if is_dataclass(settings):
            arguments |= {field.name: getattr(settings, field.name) for field in fields(settings)}
        else:
            arguments[argument] = settings
    assert call["_target_"] == f"monai_diffae.{name}"
    assert call.keys() - {"_target_"} == arguments.keys()
    for argument, default in arguments.items():
        assert call[argument] in (f"@{argument}", f"@{keys.get(argument)}")
        is_required = default is inspect.Parameter.empty
        value = config[call[argument].removeprefix("@")]
        assert value == (
            "." if argument == "bundle" else "???" if is_required else json.loads(json.dumps(plain(default)))
        )
    assert config["run"] == f"%{name}"


def plain(value):
    return dict(value) if hasattr(value, "items") else value


def test_every_configuration_of_a_command_ships_and_no_other_runs_one():
    expected = {command.config for command in RUNS}
    for bundle in BUNDLES:
        files = {path.name for path in (bundle / "configs").glob("*.json")}
        assert expected <= files
        calls = {path.name for path in (bundle / "configs").glob("*.json")
                 if re.search(r'"_target_": "monai_diffae\.[a-z_]+"', path.read_text(encoding="utf-8"))}  # fmt: skip
        assert calls <= expected


def names_in(file: Path) -> set[str]:
    """The dotted names of this package in a file."""
    return set(re.findall(r"\bmonai_diffae(?:\.\w+)+", file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", JSON_FILES, ids=lambda path: f"{path.parents[1].name}-{path.name}")
def test_json_names_packages_only(file):
    for name in names_in(file):
        package = "monai_diffae"
        parts = name.split(".")[1:]
        while parts and is_package(f"{package}.{parts[0]}"):
            package += f".{parts.pop(0)}"
        assert len(parts) <= 1, f"{name} leads through a module; name the package's own attribute"
        module = importlib.import_module(package)
        if parts:
            assert not is_module_file(f"{package}.{parts[0]}"), f"{name} is a module file"
            assert parts[0] in module.__all__, f"{name} is not public"
        assert pydoc.locate(name) is not None, f"{name} cannot be found as MONAI looks for it"


def test_json_is_there_to_be_checked():
    assert len(JSON_FILES) > 20
    assert sum(len(names_in(file)) for file in JSON_FILES) > 50


def is_package(name: str) -> bool:
    spec = find(name)
    return spec is not None and spec.submodule_search_locations is not None


def is_module_file(name: str) -> bool:
    spec = find(name)
    return spec is not None and spec.submodule_search_locations is None


def find(name: str):
    parent, _, child = name.rpartition(".")
    found = next(
        (info for info in pkgutil.iter_modules(importlib.import_module(parent).__path__) if info.name == child), None
    )
    return None if found is None else importlib.util.find_spec(name)
