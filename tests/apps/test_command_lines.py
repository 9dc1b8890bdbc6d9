"""A line for a shell calls the command with the arguments that it was made from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from monai_diffae.apps.command_lines import command_line
from monai_diffae.cli import build_app, parse


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("init", {"out": Path("my model"), "bundle": "diffae_3d"}),
        ("fit-direction", {"embeddings": Path("e.parquet"), "out": Path("a.json"), "target": "it's", "max_cases": 8}),
        ("plan", {"cohort": Path("s.csv"), "check": True}),
        ("probe", {"embeddings": Path("e.parquet"), "out": Path("probed"), "targets": ["age", "head size"]}),
    ],
)
def test_the_line_is_read_back_as_the_arguments(name: str, arguments: dict[str, Any]) -> None:
    _, bound = parse(build_app(), shlex.split(command_line(name, arguments))[1:])
    assert {key: list(v) if isinstance(v, tuple) else v for key, v in bound.arguments.items()} == arguments


def test_settings_of_dataclasses_and_overrides_are_read_back() -> None:
    given = {
        "bundle": Path("m"), "cohort": Path("s.csv"), "columns": {"image": "file name"}, "batch_size": 8,
        "overrides": {"image_size": [32, 32], "seed": 3, "solver": "unipc", "mlflow": False, "nothing": None},
    }  # fmt: skip
    function, bound = parse(build_app(), shlex.split(command_line("train", given))[1:])
    assert function.__name__ == "train"
    training = bound.arguments["training"]
    assert {"columns": training.columns, "batch_size": training.batch_size, "overrides": training.overrides} == {
        key: given[key] for key in ("columns", "batch_size", "overrides")
    }


def test_what_is_not_given_is_left_out_and_order_does_not_matter() -> None:
    given = {"out": "o", "cohort": "c", "bundle": "b", "device": None, "patches": False, "columns": {}}
    first = command_line("embed", given)
    assert first == "monai-diffae embed b c o"
