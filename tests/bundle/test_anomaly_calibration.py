"""Calibration: which scans are drawn, and what training does at its end."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from monai_diffae.apps.training.train import train
from monai_diffae.bundle import AnomalyDetector, load_bundle
from monai_diffae.bundle.anomaly_calibration import draw_scans
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data.cases import Case
from monai_diffae.data.samples import make_virtual_cohort


def cases_of(folder):
    """Three patients; the first has four scans, the last a volume of three slices."""
    first = [Case(f"a{i}", {"image": Path(folder, f"a{i}.nii")}, "a") for i in range(4)]
    volume = [Case(f"c_z{i}", {"image": Path(folder, "c.nii")}, "c", slice_index=i) for i in range(3)]
    return [*first, Case("b", {"image": Path(folder, "b.nii")}, "b"), *volume]


def test_the_draw_takes_many_patients_and_whole_volumes():
    cases = cases_of("here")
    drawn = draw_scans(cases, 3)
    assert {case.patient for case in drawn} == {"a", "b", "c"}
    assert [case.id for case in drawn if case.patient == "c"] == ["c_z0", "c_z1", "c_z2"]
    assert draw_scans(cases, 100) == cases
    assert {case.id for case in draw_scans(cases[::-1], 3)} == {case.id for case in drawn}
    assert [case.id for case in draw_scans(cases_of("there"), 3)] == [case.id for case in drawn]


def test_a_training_that_was_killed_while_calibrating_is_completed_by_running_it_again(
    tiny_bundle, tiny_settings, tmp_path
):
    copy = shutil.copytree(tiny_bundle.directory, tmp_path / "copy", ignore=shutil.ignore_patterns("cache"))
    (copy / "models" / "anomaly.pt").unlink()
    weights = (copy / "models" / "model.pt").read_bytes()
    train(copy, tiny_bundle.cohort, overrides=tiny_settings)
    AnomalyDetector.load(load_bundle(copy, "cpu"))
    assert (copy / "models" / "model.pt").read_bytes() == weights
    before = (copy / "models" / "anomaly.pt").stat().st_mtime_ns
    train(copy, tiny_bundle.cohort, overrides=tiny_settings)
    assert (copy / "models" / "anomaly.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize(("val_fraction", "limit"), [(0.1, 64), (0.2, 0)])
def test_too_few_held_out_cases_are_a_warning_not_a_failed_training(
    tiny_settings, tmp_path, caplog, val_fraction, limit
):
    cohort = make_virtual_cohort(tmp_path / "cohort", num_patients=10, size=16, val_fraction=val_fraction)
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    with caplog.at_level(logging.WARNING):
        train(bundle, cohort, overrides={**tiny_settings, "calibration_cases": limit})
    assert (bundle / "models" / "model.pt").is_file()
    assert not (bundle / "models" / "anomaly.pt").exists()
    assert ("anomaly maps are not calibrated" in caplog.text) == (limit > 0)
