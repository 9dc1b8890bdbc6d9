"""Commands check and convert their arguments by their annotations, from the command line, from JSON and in Python."""

import inspect
import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt
from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from monai_diffae import embed
from monai_diffae.apps import settings
from monai_diffae.apps.command import command
from monai_diffae.apps.commands import command_line
from monai_diffae.apps.settings import NONE_GIVEN, Choice, Columns, Decoding, Numbers, Overrides, Reading
from monai_diffae.apps.synthesis.decode import Combination
from monai_diffae.cli import build_app, parse
from monai_diffae.errors import ConfigError


@command
def draw(
    bundle: Path,
    out: Path | None = None,
    *,
    mode: Literal["x_T", "z_sem"] = "x_T",
    share: Annotated[float, Gt(0), Le(1)] = 0.5,
    overlap: Annotated[float, Ge(0), Lt(1)] | None = None,
    overrides: Overrides = NONE_GIVEN,
    choice: Choice = Choice(),
    decoding: Decoding = Decoding(),
) -> dict[str, Any]:
    """Return the checked arguments."""
    return locals()


def test_texts_and_lists_become_what_the_annotations_say():
    checked = draw("my_model", "drawn", share=1, cases=["b", "a"], steps=4)
    assert (checked["bundle"], checked["out"], checked["share"]) == (Path("my_model"), Path("drawn"), 1.0)
    assert (list(checked["choice"].cases), checked["decoding"]) == (["b", "a"], Decoding(steps=4))
    checked["overrides"]["seed"] = 1
    assert draw("b")["overrides"] == dict(NONE_GIVEN) == {}  # a default is not shared between calls


def test_settings_can_be_given_as_an_object_a_mapping_or_by_their_fields():
    expected = Decoding(steps=4, solver="heun")
    for given in (
        {"decoding": expected}, {"decoding": {"steps": 4, "solver": "heun"}}, {"steps": 4, "solver": "heun"},
        {"decoding": Decoding(steps=9, solver="heun"), "steps": 4}, {"decoding": {"solver": "heun"}, "steps": 4},
    ):  # fmt: skip
        assert draw("b", **given)["decoding"] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "z"}, "mode: 'z' is not one of x_T, z_sem"),
        ({"share": 0}, "share: 0 is not above 0"),
        ({"share": 1.5}, "share: 1.5 is above 1"),
        ({"overlap": 1}, "overlap: 1 is not below 1"),
        ({"steps": 0}, "steps: 0 is below 1"),
        ({"steps": True}, "steps: True cannot be used; give a number or text"),
        ({"decoding": Decoding(steps=0)}, "steps: 0 is below 1"),
        ({"split": "all"}, "split: 'all' is not one of train, val, test"),
        ({"nope": 1}, "nope: draw takes no such argument"),
        ({"share": "many"}, "share: 'many' cannot be used: input should be a valid number.*"),
        ({"share": float("nan")}, "share: .* cannot be used: input should be a finite number"),
        ({"decoding": "steps=4"}, "decoding: .* cannot be used: input should be a dictionary.*"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named_in_one_line(arguments, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        draw("b", **arguments)


def test_missing_and_nameless_arguments_are_named():
    with pytest.raises(ConfigError, match=r"^bundle: is required; give it a value$"):
        draw()
    with pytest.raises(ConfigError, match=r"^bundle: 5 cannot be used: input is not a valid path"):
        draw(5)
    with pytest.raises(ConfigError, match=r"^draw: 'x_T' has no name; give all but the first 2 arguments by name$"):
        draw("b", "out", "x_T")


def test_the_signature_shows_the_fields_in_place_of_their_dataclasses():
    parameters = inspect.signature(draw).parameters
    assert list(parameters) == [
        "bundle", "out", "mode", "share", "overlap", "overrides",
        "cases", "split", "limit", "steps", "solver", "spacing", "decoder", "eta", "invert_steps", "inversion",
    ]  # fmt: skip
    assert parameters["solver"].default is None


@command
def measure(bundle: Path, cohort: Path, out: Path) -> Path:
    """Return ``out``."""
    return out


def test_results_do_not_go_among_the_scans(tmp_path):
    scans = tmp_path / "scans"
    (scans / "model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="out: results lies in the folder of scans"):
        measure("diffae_2d", scans, scans / "deep" / "results")
    with pytest.raises(ConfigError, match="bundle: model lies in the folder of scans"):
        measure(scans / "model", scans, tmp_path / "results")
    with pytest.raises(ConfigError, match="out: scans lies in"):
        measure("diffae_2d", scans, scans)
    assert measure("diffae_2d", scans, scans / "scans.csv").name == "scans.csv"  # a table is no scan
    assert measure("diffae_2d", scans, tmp_path / "results").name == "results"
    (scans / "table.csv").write_text("image")
    assert measure("diffae_2d", scans / "table.csv", scans / "results").name == "results"


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
    for word in ("image", "=file", "image="):
        with pytest.raises(CycloptsError, match="is not of the form name=value"):
            parsed(Columns, word)
    moves = get_type_hints(Combination, include_extras=True)["moves"]
    assert parsed(moves, "run=1/sex.json=1.5") == {"run=1/sex.json": "1.5"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("1e-3", 1e-3), ("[1,2]", [1, 2]), ('{"a": 1}', {"a": 1}), ("true", True), ("False", False),
        ("null", None), ("None", None), ("fp32", "fp32"), ('"5"', "5"), ("$@a + 1", "$@a + 1"),
    ],
)  # fmt: skip
def test_values_of_overrides_are_json_or_else_text(text, value):
    assert parsed(Overrides, f"max_epochs={text}", "a#b=1") == {"max_epochs": value, "a#b": 1}


def test_numbers_are_separated_by_commas_or_spaces():
    assert parsed(Numbers, "0,-1,2.5") == (0, -1, 2.5)
    assert parsed(Numbers, "-2", "0", "2.5") == (-2, 0, 2.5)
    with pytest.raises(CycloptsError):
        parsed(Numbers, "1,b")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "fit-direction",
            {"embeddings": Path("e.parquet"), "out": Path("my a.json"), "target": "it's", "seed": 8},
        ),
        ("list-scans", {"cohort": Path("s"), "out": Path("s.csv"), "skip_twins": True}),
        ("probe", {"embeddings": Path("e.parquet"), "out": Path("probed"), "targets": ["age", "head size"]}),
    ],
)
def test_a_line_for_a_shell_is_read_back_as_the_arguments_that_it_was_made_from(name, arguments):
    _, bound = parse(build_app(), shlex.split(command_line(name, arguments))[1:])
    assert {key: list(v) if isinstance(v, tuple) else v for key, v in bound.arguments.items()} == arguments


def test_a_process_is_numbered_as_torchrun_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert settings.this_process() == settings.Process(0, 1, 0)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert settings.this_process() == settings.Process(5, 8, 1, local_world_size=4)
    for name, value in (("LOCAL_WORLD_SIZE", "0"), ("RANK", "8"), ("RANK", "-1"), ("RANK", "")):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=r"^RANK, .*, LOCAL_WORLD_SIZE are '.*', '8', '1', '.'; use torchrun"):
            settings.this_process()


@pytest.mark.parametrize(
    ("workers", "num_cases", "num_processes", "expected"),
    [(None, 255, 1, 0), (None, 256, 1, min(os.cpu_count(), 8)), (None, 256, 1000, 1), (7, 1, 1, 7)],
)
def test_workers_are_as_many_as_given_or_one_per_core(workers, num_cases, num_processes, expected):
    assert Reading(workers=workers).workers_for(num_cases, num_processes) == expected


def test_results_are_not_written_into_another_bundle(tiny_bundle, labelled, tmp_path):
    with pytest.raises(ConfigError, match="is another bundle"):
        embed(tiny_bundle.directory, labelled.cohort, labelled.bundle)
