"""The table of commands: each one loads, is documented and can be called as its example says."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import monai_diffae
from monai_diffae.apps.commands import COMMANDS, Command
from monai_diffae.cli import build_app, parse

MAX_PARAMETERS = 12
every_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)


def docstring(command: Command) -> str:
    text = inspect.getdoc(command.declared())
    assert text
    return text


def test_each_command_loads_without_anything_heavy():
    code = """
import json, sys
from monai_diffae.apps.commands import COMMANDS
heavy = {"torch", "monai", "pandas", "numpy", "pydantic"}
first = {}
for command in COMMANDS:
    command.load()
    first |= {name: command.name for name in heavy & sys.modules.keys() if name not in first}
print(json.dumps(first))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {}  # a module, and the first command that loads it


@every_command
def test_it_is_at_the_public_door_under_its_name(command):
    function = command.load()
    assert function.__name__ == command.name.replace("-", "_")
    assert function.__name__ in monai_diffae.__all__
    assert getattr(monai_diffae, function.__name__) is function
    assert hasattr(function, "__wrapped__"), "add @command"


@every_command
def test_its_summary_is_one_sentence_that_says_what_comes_out(command):
    summary = docstring(command).split("\n\n")[0].replace("\n", " ")
    without_abbreviations = re.sub(r"\be\.g\.|\bi\.e\.|\bvs\.", "", summary)
    assert re.fullmatch(r"[A-Z][^.!?]*(\.\w[^.!?]*)*\.", without_abbreviations), summary
    assert not re.match(r"The|What|A |An |How|This", summary), "begin with a verb in the imperative"
    assert len(summary) <= 240


@every_command
def test_every_argument_is_documented(command):
    arguments = build_app()[command.name].assemble_argument_collection(parse_docstring=True)
    assert [argument.name for argument in arguments if not argument.parameter.help] == []
    for argument in arguments:
        text = str(argument.parameter.help)
        assert text.endswith("."), f"{argument.name}: {text}"
        assert text[0].isupper() or text[0] in "`0123456789", f"{argument.name}: {text}"
    parameters = inspect.signature(command.declared()).parameters
    documented = re.findall(r"^    (\w+): ", docstring(command).partition("\nArgs:\n")[2].partition("\n\n")[0], re.M)
    assert documented == list(parameters)


@every_command
def test_its_docstring_says_what_it_returns_and_raises_with_an_example(command):
    assert all(f"\n{section}:\n" in docstring(command) for section in ("Returns", "Raises", "Example"))


@every_command
def test_it_has_few_parameters_and_no_positional_options(command):
    parameters = inspect.signature(command.declared()).parameters.values()
    assert len(parameters) <= MAX_PARAMETERS
    required = [p.kind for p in parameters if p.default is inspect.Parameter.empty]
    assert inspect.Parameter.VAR_POSITIONAL not in [p.kind for p in parameters]
    assert len(required) <= 5
    for parameter in parameters:
        if is_dataclass(parameter.default):
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


@every_command
def test_no_name_is_declared_twice(command):
    names: list[str] = []
    for name, parameter in inspect.signature(command.declared()).parameters.items():
        names += [f.name for f in fields(parameter.default)] if is_dataclass(parameter.default) else [name]
    assert len(names) == len(set(names))


@every_command
def test_its_example_can_be_typed(command):
    program, *words = shlex.split(command.example)
    assert (program, words[0]) == ("monai-diffae", command.name)
    function, bound = parse(build_app(), words)
    assert function is command.declared()
    assert bound.arguments


def test_names_and_configurations_are_unique():
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)
    configs = [command.config for command in COMMANDS if command.config is not None]
    assert len(set(configs)) == len(configs)


def test_the_documentation_of_words_has_every_shared_argument():
    from monai_diffae.apps import settings

    words = (Path(__file__).parents[2] / "docs" / "words.md").read_text(encoding="utf-8")
    shared = {f.name for kind in (settings.Choice, settings.Decoding, settings.Reading, settings.Run, settings.Training)
              for f in fields(kind)}  # fmt: skip
    assert {name for name in shared if f"`{name}`" not in words} == set()
