"""The table of commands: each one is documented, can be called as its example says, and has a bundle run."""

import inspect
import pydoc
import re
import shlex
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from make_configs import update_command_configs

import monai_diffae
from monai_diffae.apps import settings
from monai_diffae.apps.commands import COMMANDS
from monai_diffae.cli import build_app, parse
from monai_diffae.errors import DiffAEError

ROOT = Path(__file__).parents[2]
BUNDLES = [ROOT / "bundles" / name for name in ("diffae_2d", "diffae_3d")]
SETTINGS = (settings.Choice, settings.Decoding, settings.Reading, settings.Run, settings.Training)

every_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)


@every_command
def test_it_is_at_the_public_door_and_its_example_can_be_typed(command):
    function = command.load()
    assert function.__name__ == command.name.replace("-", "_")
    assert function.__name__ in monai_diffae.__all__
    assert getattr(monai_diffae, function.__name__) is function
    assert hasattr(function, "__wrapped__"), "add @command"
    program, *words = shlex.split(command.example)
    assert (program, words[0]) == ("monai-diffae", command.name)
    function, bound = parse(build_app(), words)
    assert function is command.declared()
    assert bound.arguments


@every_command
def test_its_docstring_has_all_arguments(command):
    docstring = inspect.getdoc(command.declared())
    assert all(f"\n{section}:\n" in docstring for section in ("Returns", "Raises"))
    arguments = build_app()[command.name].assemble_argument_collection(parse_docstring=True)
    assert [argument.name for argument in arguments if not (argument.parameter.help or argument.name == "*")] == []
    documented = re.findall(r"^    (\w+): ", docstring.partition("\nArgs:\n")[2].partition("\n\n")[0], re.M)
    parameters = inspect.signature(command.declared()).parameters.values()
    # dataclasses of settings say what their fields are, and the signature that users see has the fields
    assert documented == [each.name for each in parameters if not is_dataclass(each.default) or each.name in documented]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("edit('bundle', 'scans.csv', 'out', direction='no')", "CohortError: scans.csv: there is no such folder"),
        ("explain('bundle', 'cohort.csv', 'out', model='no.onnx', embeddings='no')", "ConfigError: model: there is no"),
        ("harmonize('no.parquet', 'even.csv', scanner='scanner')", "ConfigError: even.csv: must be a .parquet file"),
        ("init('my_model', bundle='diffae_4d')", "ConfigError: bundle: there is no 'diffae_4d'; choose one of: auto"),
        ("pull('model.zip', 'my_copy')", "ConfigError: model.zip: there is no such file; give a zip file, or a repo"),
        (
            "decode('bundle', 'out', embeddings='no.parquet', case='case-1', show='components')",
            "ConfigError: case: give the case together with the cohort",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(call, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cohort.csv").touch()
    with pytest.raises(DiffAEError) as raised:
        eval(call, vars(monai_diffae) | {name: getattr(monai_diffae, name) for name in monai_diffae.__all__})
    assert f"{type(raised.value).__name__}: {raised.value}".startswith(error)


def test_names_of_settings_have_one_meaning():
    owners = {}
    for kind in SETTINGS:
        for field in fields(kind):
            owners.setdefault(field.name, set()).add(str(field.type).removesuffix(" | None"))
    assert {name for name, types in owners.items() if len(types) > 1} == set()
    words = (ROOT / "docs" / "words.md").read_text(encoding="utf-8")
    assert {name for name in owners if f"`{name}`" not in words} == set()


@pytest.mark.parametrize("bundle", [*BUNDLES, ROOT / "bundles" / "autoencoder_kl_3d"], ids=lambda path: path.name)
def test_the_shipped_files_are_current(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / bundle.name)
    files = update_command_configs(copy)
    expected = {command.config for command in COMMANDS if command.config} if bundle in BUNDLES else {"inference.json"}
    assert {file.name for file in files} == expected
    for file in files:
        shipped = (bundle / file.relative_to(copy)).read_text(encoding="utf-8")
        assert shipped == file.read_text(encoding="utf-8"), f"{file.name}: run make configs"
    calls = {
        path.name for path in (bundle / "configs").glob("*.json")
        if re.search(r'"_target_": "monai_diffae\.[a-z_]+"', path.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert calls <= expected


def test_names_in_json_are_found_as_monai_looks_for_them():
    files = [*ROOT.glob("bundles/*/configs/*.json"), *ROOT.glob("configs/*.json")]
    found = (re.findall(r"\bmonai_diffae(?:\.\w+)+", file.read_text(encoding="utf-8")) for file in files)
    names = {name for each in found for name in each}
    assert len(names) > 30
    assert [name for name in names if pydoc.locate(name) is None] == []
