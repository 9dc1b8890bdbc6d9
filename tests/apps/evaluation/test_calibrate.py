from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import monai_diffae as mdae
from monai_diffae.bundle import AnomalyDetector
from monai_diffae.data.scans import write_scan
from monai_diffae.errors import CohortError, ConfigError


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))


def test_a_bundle_is_calibrated_once_with_the_same_cases_and_again_with_others(bundle, tiny_bundle):
    result = mdae.calibrate(bundle, tiny_bundle.cohort, split="test", draws=2)
    assert not result.skipped
    assert result.num_cases == result.num_patients
    assert result.lowest_p_value == pytest.approx(1 / (1 + result.num_cases))
    assert result.incomplete is None
    written = result.path.read_bytes()
    again = mdae.calibrate(bundle, tiny_bundle.cohort, split="test", draws=2)
    assert again == mdae.calibrate(bundle, tiny_bundle.cohort, split="test", draws=2)
    assert again.skipped
    assert result.path.read_bytes() == written
    fewer = mdae.calibrate(bundle, tiny_bundle.cohort, split="test", draws=2, limit=2)
    assert (fewer.num_cases, fewer.skipped) == (2, False)
    assert mdae.calibrate(bundle, tiny_bundle.cohort, split="test", limit=2, noise_level=0.5).skipped is False


def test_the_calibration_is_the_same_in_every_run(bundle, tiny_bundle):
    mdae.calibrate(bundle, tiny_bundle.cohort, draws=2)
    first = AnomalyDetector.load(mdae.load_bundle(bundle, "cpu"))
    mdae.calibrate(bundle, tiny_bundle.cohort, draws=2, overwrite=True)
    second = AnomalyDetector.load(mdae.load_bundle(bundle, "cpu"))
    assert np.array_equal(first.scores, second.scores)
    assert np.array_equal(first.quantiles, second.quantiles)


def test_a_calibration_with_an_override_serves_the_same_override(bundle, tiny_bundle, tmp_path):
    mdae.calibrate(bundle, tiny_bundle.cohort, draws=2, overrides={"percentiles": [2, 98]})
    with pytest.raises(ConfigError, match="another configuration"):
        mdae.anomaly(bundle, tiny_bundle.cohort, tmp_path / "out", limit=1)
    assert mdae.anomaly(bundle, tiny_bundle.cohort, tmp_path / "out", limit=1, overrides={"percentiles": [2, 98]})


def test_bad_scans_are_listed_and_one_patient_is_too_few(bundle, tiny_bundle, tmp_path):
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    table["split"] = "val"
    bad = tmp_path / "bad.nii"
    bad.write_bytes((tiny_bundle.cohort.parent / "images").glob("*.nii").__next__().read_bytes()[:400])
    table.loc[3, "image"] = str(bad)
    table.to_csv(tmp_path / "cohort.csv", index=False)
    result = mdae.calibrate(bundle, tmp_path / "cohort.csv", draws=1)
    assert result.num_failed == 1
    assert "calibration_failures.csv" in result.incomplete
    table.head(3).assign(patient="one").to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(CohortError, match="at least 2 patients"):
        mdae.calibrate(bundle, tmp_path / "one.csv")
    assert mdae.calibrate(bundle, tmp_path / "cohort.csv", draws=1).skipped


def test_the_lowest_p_value_of_volumes_is_that_of_a_volume_not_of_a_slice(bundle, tmp_path):
    rows = []
    for k in range(3):
        array = np.random.default_rng(k).random((1, 20, 18, 12))
        rows.append({"image": str(write_scan(tmp_path / f"{k}.nii.gz", array)), "patient": k, "split": "val"})
    pd.DataFrame(rows).to_csv(tmp_path / "volumes.csv", index=False)
    result = mdae.calibrate(bundle, tmp_path / "volumes.csv", draws=1)
    assert result.num_cases > 3
    assert result.lowest_p_value == pytest.approx(1 / 4)


def test_a_model_that_estimates_nan_is_refused(bundle, tiny_bundle, tmp_path):
    """Its scores would be NaN, and NaN compares with nothing, so every case would have a p-value of 1."""
    path = bundle / "models" / "model.pt"
    weights = torch.load(path, weights_only=True)
    grown = {name: value * 1e30 if name.startswith("unet") else value for name, value in weights.items()}
    torch.save(grown, path)
    with pytest.raises(ConfigError, match="bundle: the model estimates values that are not finite; train it again"):
        mdae.calibrate(bundle, tiny_bundle.cohort, draws=1)
    trained = mdae.load_bundle(tiny_bundle.directory, "cpu")
    detector = AnomalyDetector.load(trained)
    case = trained.open(tiny_bundle.cohort.parent / pd.read_csv(tiny_bundle.cohort)["image"][0])
    trained.network.load_state_dict(grown)
    with pytest.raises(ConfigError, match="not finite"):
        detector(case)


def test_the_program_says_how_low_p_values_can_be(run, bundle, tiny_bundle, caplog):
    code, out, _ = run("calibrate", bundle, tiny_bundle.cohort, "--split", "test", "--draws", 1)
    assert code == 0
    assert "the lowest p-value is 0." in out
    assert out.splitlines()[-1].endswith("anomaly.pt")
    assert "19 scans or more allow p-values of .05" in caplog.text
