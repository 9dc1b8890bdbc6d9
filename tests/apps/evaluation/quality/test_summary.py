import numpy as np
import pytest

from monai_diffae.apps.evaluation.quality.summary import difference_rows, mean_rows


def case_rows(bundle, values, steps=10):
    return [
        {"table": "reconstruction", "bundle": bundle, "steps": steps, "id": f"c{i}", "mse": float(v)}
        for i, v in enumerate(values)
    ]


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(2, 40))


def test_a_mean_with_the_interval_of_its_patients(values):
    own = {f"c{i}": f"p{i}" for i in range(40)}
    (row,) = mean_rows(case_rows("a", values[0]), own)
    assert row["value"] == pytest.approx(values[0].mean())
    half = 1.96 * values[0].std() / np.sqrt(40)
    assert row["low"] == pytest.approx(row["value"] - half, abs=0.1 * half + 0.02)
    assert (row["bundle"], row["steps"], row["solver"], row["num_cases"]) == ("a", 10, None, 40)
    twice = np.repeat(values[0][:20], 2)  # two equal scans of each of 20 patients are worth 20 cases
    (row,) = mean_rows(case_rows("a", twice), {f"c{i}": f"p{i // 2}" for i in range(40)})
    (few,) = mean_rows(case_rows("a", values[0][:20]), own)
    assert row["high"] - row["low"] == pytest.approx(few["high"] - few["low"], rel=1e-9)


def test_differences_are_paired(values):
    patients = {f"c{i}": f"p{i}" for i in range(40)}
    rows = [*case_rows("a", values[0]), *case_rows("b", values[0] + 0.1), *case_rows("c", values[1], steps=20)]
    (row,) = difference_rows(rows, "a", patients)
    assert (row["bundle"], row["reference"]) == ("b", "a")
    assert [row[key] for key in ("value", "low", "high")] == pytest.approx([0.1] * 3)


def test_only_common_cases_are_compared(values):
    patients = {f"c{i}": f"p{i}" for i in range(40)}
    rows = [*case_rows("a", values[0]), *case_rows("b", values[1][:10])]
    (row,) = difference_rows(rows, "a", patients)
    assert row["num_cases"] == 10
    assert row["value"] == pytest.approx((values[1][:10] - values[0][:10]).mean())


def test_what_is_not_finite_is_none():
    patients = {"c0": "p0", "c1": "p1"}
    (row,) = mean_rows(case_rows("a", [np.inf, 1.0]), patients)
    assert row["value"] is None
