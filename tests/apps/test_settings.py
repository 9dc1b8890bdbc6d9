"""Arguments that several commands share, as they are read from the command line."""

from __future__ import annotations

import os
from dataclasses import fields

import pytest
from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from monai_diffae.apps import settings
from monai_diffae.apps.settings import Choice, Columns, Decoding, Numbers, Overrides, Reading, Run, Training

ALL = (Choice, Decoding, Reading, Run, Training)


def parsed(type_, *words):
    """The value of one option of this type."""

    def function(*, option):
        return option

    function.__annotations__ = {"option": type_}
    parameter = Parameter(consume_multiple=True, negative="")
    app = App(default_parameter=parameter, result_action="return_value", exit_on_error=False, print_error=False)
    app.default(function)
    return app(["--option", *words])


def test_columns_are_pairs_of_names():
    assert parsed(Columns, "image=file", "patient=subject=1") == {"image": "file", "patient": "subject=1"}


@pytest.mark.parametrize("words", [["image"], ["=file"], ["image="]])
def test_what_is_not_a_pair_is_named(words):
    with pytest.raises(CycloptsError, match="is not of the form name=value"):
        parsed(Columns, *words)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("0.5", 0.5), ("1e-3", 1e-3), ("[1,2]", [1, 2]), ('{"a": 1}', {"a": 1}), ("true", True),
        ("False", False), ("null", None), ("None", None), ("fp32", "fp32"), ('"5"', "5"), ("$@a + 1", "$@a + 1"),
    ],
)  # fmt: skip
def test_values_of_overrides_are_json_or_else_text(text, value):
    assert parsed(Overrides, f"max_epochs={text}", "a#b=1") == {"max_epochs": value, "a#b": 1}


def test_numbers_are_separated_by_commas_or_spaces():
    assert parsed(Numbers, "0,-1,2.5") == (0, -1, 2.5)
    assert parsed(Numbers, "-2", "0", "2.5") == (-2, 0, 2.5)
    with pytest.raises(CycloptsError):
        parsed(Numbers, "1,b")


@pytest.mark.parametrize("kind", ALL)
def test_every_field_has_a_default_and_a_help_text(kind):
    kind()
    with open(settings.__file__, encoding="utf-8") as stream:
        source = stream.read()
    body = source.partition(f"class {kind.__name__}:")[2].partition("\n@")[0]
    for field in fields(kind):
        declaration = body.partition(f"\n    {field.name}: ")[2]
        assert declaration.splitlines()[1].strip().startswith('"""'), field.name
        assert declaration.splitlines()[1].strip().endswith('."""'), field.name


def test_a_name_has_one_meaning_in_all_of_them():
    owners: dict[str, set[str]] = {}
    for kind in ALL:
        for field in fields(kind):
            owners.setdefault(field.name, set()).add(str(field.type).removesuffix(" | None"))
    assert {name for name, types in owners.items() if len(types) > 1} == set()


@pytest.mark.parametrize(
    ("workers", "num_cases", "num_processes", "expected"),
    [(None, 255, 1, 0), (None, 256, 1, 8), (None, 256, 5, 3), (None, 256, 99, 1), (0, 10**6, 1, 0), (7, 1, 1, 7)],
)
def test_workers_are_as_many_as_given_or_one_per_core(monkeypatch, workers, num_cases, num_processes, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert Reading(workers=workers).workers_for(num_cases, num_processes) == expected
