"""Steps run real commands, show them, and outlive the failure of an optional one."""

from __future__ import annotations

import logging
import shlex

import pytest

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
