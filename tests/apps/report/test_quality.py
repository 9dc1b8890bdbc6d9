"""Quality over steps: what evaluate wrote, as charts and tables."""

from __future__ import annotations

from types import SimpleNamespace
from xml.etree import ElementTree

from monai_diffae.apps.report.quality import quality_section
from monai_diffae.apps.steps import Outcome, Step


def row(bundle: str, steps: int, metric: str, value: float, **more: object) -> dict:
    empty = {"features": None, "timestep": None, "solver": "heun", "num_cases": 3, "low": value - 1, "high": value + 1}
    return {
        "table": "reconstruction",
        "bundle": bundle,
        "steps": steps,
        "metric": metric,
        "value": value,
        **empty,
        **more,
    }


def outcome(**more: object) -> Outcome:
    rows = [row(bundle, steps, "psnr", steps + 10.0) for bundle in ("a", "b") for steps in (5, 10)]
    differences = [row("b", 5, "psnr", 2.0, low=1.0, high=3.0) | {"reference": "a"}]
    omitted = [{"bundle": "a", "metric": "lpips", "reason": "no weights"}]
    figures = {
        "rows": rows, "differences": differences, "omitted": omitted,
        "held_out": True, "split": "test", "num_cases": 3, "num_patients": 2, **more,
    }  # fmt: skip
    return Outcome(Step("Evaluate", "evaluate", {}), 1.0, SimpleNamespace(figures=lambda: figures))


def test_each_condition_has_a_line_and_each_metric_a_column() -> None:
    content = quality_section(outcome(), "line").content
    root = ElementTree.fromstring(f"<div>{content}</div>")
    quality, differences = root.findall(".//table")
    assert [each.text for each in quality.findall(".//thead/tr/th")] == ["bundle", "solver", "steps", "PSNR (dB) ↑"]
    assert len(quality.findall(".//tbody/tr")) == 4
    assert "+2" in "".join(differences.itertext())
    assert differences.find(".//strong") is not None  # the interval excludes 0
    assert "lpips is left out: no weights" in content


def test_the_use_of_z_sem_is_drawn_over_the_noise_levels() -> None:
    rows = [row("a", 5, "z_sem_usage", 2.0, table="z_sem", timestep=each, low=None, high=None) for each in (50, 150)]
    content = quality_section(outcome(rows=rows, differences=[])).content
    assert content.count('class="marker"') == 2
    assert "<table>" not in content


def test_cases_that_may_have_been_trained_on_are_labelled() -> None:
    assert "may have been trained on" in quality_section(outcome(held_out=False)).content


def test_without_an_evaluation_there_is_no_section_and_a_failure_says_why() -> None:
    assert quality_section(None) is None
    failed = Outcome(Step("Evaluate", "evaluate", {}), 1.0, error="no held-out case")
    assert "no held-out case" in quality_section(failed).content
