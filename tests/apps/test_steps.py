"""Steps run real commands, show them, and outlive the failure of an optional one."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import dataclass

import pytest

from monai_diffae.apps.commands import Command
from monai_diffae.apps.results import FolderResult
from monai_diffae.apps.steps import Steps
from monai_diffae.cli import build_app, parse
from monai_diffae.errors import CohortError


def test_a_step_runs_its_command_and_shows_it_as_it_can_be_typed(labelled, caplog) -> None:
    caplog.set_level(logging.INFO, logger="monai_diffae")
    steps = Steps()
    result = steps.attempt("Predict", "probe", embeddings=labelled.embeddings, targets=["wide"], evaluation="cv")
    assert result.rows[0]["target"] == "wide"
    assert steps.outcomes[0].result is result
    line = steps.outcomes[0].step.line
    assert f"$ {line}" in caplog.text
    assert "AUROC" in caplog.text
    function, bound = parse(build_app(), shlex.split(line)[1:])
    assert function.__name__ == "probe"
    assert bound.arguments["embeddings"] == labelled.embeddings


def test_an_optional_step_that_fails_is_kept_with_its_reason(tmp_path, caplog) -> None:
    steps = Steps()
    assert steps.attempt("Predict", "probe", embeddings=tmp_path / "no.parquet") is None
    outcome = steps.outcomes[0]
    assert outcome.result is None
    assert "no.parquet: there is no such file" in (outcome.error or "")
    assert "Predict: omitted (no.parquet" in caplog.text


def test_a_step_that_others_need_raises(tmp_path) -> None:
    steps = Steps()
    with pytest.raises(CohortError):
        steps.prepare("Predict", "probe", embeddings=tmp_path / "no.parquet")
    assert steps.outcomes == []


@dataclass(frozen=True)
class Made(FolderResult):
    """A result that says whether it was complete already."""

    skipped: bool = False


def test_a_later_call_knows_durations_and_warnings_of_the_first(labelled, tmp_path, monkeypatch) -> None:
    def loud(**arguments):
        logging.getLogger("monai_diffae.anything").warning("be careful with %s", arguments["out"].name)
        return Made(arguments["out"], skipped=skipped)

    skipped = False
    monkeypatch.setattr(Command, "load", lambda self: loud)
    first = Steps(tmp_path / "steps.json", keeps_lines=True)
    first.prepare("Embed", "embed", out=tmp_path / "a")
    first.attempt("Look", "neighbors", out=tmp_path / "b")
    assert [outcome.warnings for outcome in first.outcomes] == [("be careful with a",), ("be careful with b",)]
    notes = json.loads((tmp_path / "steps.json").read_text())
    for note in notes.values():
        note["seconds"] = 77
    (tmp_path / "steps.json").write_text(json.dumps(notes))

    skipped = True
    later = Steps(tmp_path / "steps.json", keeps_lines=True)
    later.attempt("Look", "neighbors", out=tmp_path / "b")
    assert [(each.step.title, each.seconds) for each in later.with_earlier()] == [("Embed", 77), ("Look", 77)]
    assert later.with_earlier()[0].step.line == first.outcomes[0].step.line
    assert later.with_earlier()[1].warnings == ("be careful with b",)


@pytest.mark.goal(id="R21")
def test_a_journal_has_no_paths_unless_it_keeps_lines(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Command, "load", lambda self: lambda out: Made(out))
    for name, keeps_lines in (("private", True), ("shared", False)):
        steps = Steps(tmp_path / f"{name}.json", keeps_lines=keeps_lines)
        steps.prepare("Embed", "embed", out=tmp_path / "Doe")
    assert "Doe" in (tmp_path / "private.json").read_text()
    assert "Doe" not in (tmp_path / "shared.json").read_text()
    assert steps.with_earlier() == steps.outcomes
