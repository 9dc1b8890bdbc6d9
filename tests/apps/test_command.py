"""Commands check and convert their arguments by their annotations, from the command line, from JSON and in Python."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt

from monai_diffae.apps.command import command
from monai_diffae.apps.settings import NONE_GIVEN, Choice, Decoding, Overrides, Run
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


def test_settings_can_be_given_as_an_object_a_mapping_or_by_their_fields():
    expected = Decoding(steps=4, solver="heun")
    for given in (
        {"decoding": expected},
        {"decoding": {"steps": 4, "solver": "heun"}},
        {"steps": 4, "solver": "heun"},
        {"decoding": Decoding(steps=9, solver="heun"), "steps": 4},
        {"decoding": {"solver": "heun"}, "steps": 4},
    ):
        assert draw("b", **given)["decoding"] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "z"}, "mode: 'z' is not one of x_T, z_sem"),
        ({"share": 0}, "share: 0 is not above 0"),
        ({"share": 1.5}, "share: 1.5 is above 1"),
        ({"overlap": -0.1}, "overlap: -0.1 is below 0"),
        ({"overlap": 1}, "overlap: 1 is not below 1"),
        ({"steps": 0}, "steps: 0 is below 1"),
        ({"decoding": {"steps": 0}}, "steps: 0 is below 1"),
        ({"decoding": Decoding(steps=0)}, "steps: 0 is below 1"),
        ({"split": "all"}, "split: 'all' is not one of train, val, test"),
        ({"limit": 0}, "limit: 0 is below 1"),
        ({"nope": 1}, "nope: draw takes no such argument"),
        ({"decoding": {"nope": 1}}, "nope: draw takes no such argument"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named_in_one_line(arguments, message):
    with pytest.raises(ConfigError) as caught:
        draw("b", **arguments)
    assert str(caught.value) == message


def test_other_reasons_are_those_of_the_check_in_one_line():
    with pytest.raises(ConfigError, match=r"^share: 'many' cannot be used: input should be a valid number"):
        draw("b", share="many")
    with pytest.raises(ConfigError, match=r"^bundle: 5 cannot be used: input is not a valid path"):
        draw(5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": True}, {"steps": np.True_}, {"share": np.True_}, {"cases": [True]}, {"cases": (np.True_,)},
        {"decoding": {"steps": True}}, {"decoding": Decoding(steps=True)}, {"choice": Choice(cases=[True])},
        {"decoding": {"steps": np.True_}, "solver": "heun"},
    ],
)  # fmt: skip
def test_truth_is_not_a_number(arguments):
    with pytest.raises(ConfigError, match=r"^(steps|share|cases): .* not True or False$"):
        draw("b", **arguments)


@pytest.mark.parametrize("settings", [None, 5, "steps=4", [("steps", 4)]])
def test_what_is_no_settings_is_named_with_and_without_a_field(settings):
    for more in ({}, {"solver": "heun"}):
        with pytest.raises(ConfigError, match=r"^decoding: .* cannot be used: input should be a dictionary"):
            draw("b", decoding=settings, **more)


def test_infinite_numbers_and_nan_are_refused():
    for value in (float("nan"), float("inf"), "nan"):
        with pytest.raises(ConfigError, match=r"^share: .* cannot be used: input should be a finite number$"):
            draw("b", share=value)


def test_an_argument_that_needs_its_name_is_not_called_unknown():
    with pytest.raises(ConfigError, match=r"^draw: 'x_T' has no name; give all but the first 2 arguments by name$"):
        draw("b", "out", "x_T")
    with pytest.raises(ConfigError, match=r"^draw: 2 has no name"):
        draw("b", "out", *range(2, 20))


def test_a_missing_argument_is_named():
    with pytest.raises(ConfigError, match=r"^bundle: is required; give it a value$"):
        draw()


def test_the_signature_shows_the_fields_in_place_of_their_dataclasses():
    parameters = inspect.signature(draw).parameters
    assert list(parameters) == [
        "bundle", "out", "mode", "share", "overlap", "overrides",
        "cases", "split", "limit", "steps", "invert_steps", "solver", "inversion", "spacing", "decoder",
    ]  # fmt: skip
    assert parameters["solver"].default is None
    assert inspect.unwrap(draw).__name__ == draw.__name__ == "draw"


def test_a_default_is_not_shared_between_calls():
    draw("b")["overrides"]["seed"] = 1
    assert draw("b")["overrides"] == {}
    assert dict(NONE_GIVEN) == {}


def test_errors_of_the_function_itself_pass_through():
    @command
    def fail(run: Run = Run()) -> None:
        """Raise an error."""
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="^a bug$") as caught:
        fail()
    assert not isinstance(caught.value, ConfigError)


@command
def measure(bundle: Path, cohort: Path, out: Path) -> Path:
    """Return ``out``."""
    return out


def test_results_do_not_go_among_the_scans(tmp_path: Path) -> None:
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
