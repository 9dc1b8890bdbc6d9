"""The detector of a bundle: stored, refused if stale, and applied to pictures and to volumes in a 2D bundle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from complaints import complaint
from tiny_bundles import rewrite

from monai_diffae.apps.evaluation.calibrate import draw_scans, fit_detector
from monai_diffae.bundle import AnomalyDetector, AnomalySettings, load_bundle
from monai_diffae.data import Case, read_cohort, write_scan
from monai_diffae.errors import ConfigError


@pytest.fixture
def detector(trained):
    return AnomalyDetector.load(trained)


@pytest.fixture
def case(trained, tiny_bundle):
    return trained.open(next(iter(read_cohort(tiny_bundle.cohort)[0].images.values())))


@pytest.fixture
def calibrate(bundle, tiny_bundle, make_workflow):
    """What a training of the bundle does at its end."""

    def call(**values):
        folders = {"bundle_root": str(bundle), "output_dir": str(bundle), "dataset_dir": str(tiny_bundle.cohort)}
        make_workflow({**folders, **values}).parser.get_parsed_content("training#2")

    return call


def test_a_training_calibrates_the_bundle_with_its_validation_cases(bundle, calibrate, trained, detector, caplog):
    file = bundle / "models" / "anomaly.safetensors"
    before = file.stat().st_mtime_ns
    calibrate()
    assert file.stat().st_mtime_ns == before  # it is calibrated already
    file.unlink()
    for cases in (0, 1):
        calibrate(calibration_cases=cases)
        assert not file.exists()
    assert caplog.text.count("anomaly maps are not calibrated") == 1
    calibrate()  # as after a kill
    again = AnomalyDetector.load(load_bundle(bundle, "cpu"))
    assert again.made_from["model"] == detector.made_from["model"] == trained.sha256
    assert again.mean_squares.shape == (1, 16, 16)
    torch.testing.assert_close(again.scores, detector.scores)
    torch.testing.assert_close(again.mean_squares, detector.mean_squares)


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


def test_a_case_has_a_map_a_score_a_mask_and_a_p_value(detector, case):
    anomaly = detector(case)
    assert anomaly.map.shape == anomaly.reconstruction.shape == case.images.shape
    assert 0 < anomaly.p_value <= 1
    assert anomaly.mask(0.5).dtype == torch.bool
    assert anomaly.mask(0.5).sum() > anomaly.mask(0.999).sum()
    assert torch.equal(anomaly.map, detector(case).map)
    assert case.back_mask(anomaly.mask()).shape == case.back_map(anomaly.map).shape == case.scan.array.shape


def test_a_planted_lesion_raises_the_score_and_is_where_the_map_is_highest(detector, trained, case):
    array = case.scan.array.copy()
    row, column = (size // 2 for size in array.shape[1:3])
    array[:, row - 2 : row + 3, column - 2 : column + 3] = array.max() * 2
    planted = trained.open(array)
    score = detector(case).score
    anomaly = detector(planted)
    assert anomaly.score > score
    assert anomaly.p_value == pytest.approx(1 / (1 + len(detector.scores)))
    native = planted.back_map(anomaly.map)[0]
    assert np.hypot(*np.subtract(np.unravel_index(native.argmax(), native.shape)[:2], (row, column))) < 5


def test_a_held_out_case_is_compared_with_the_others(trained, tiny_bundle):
    cases = read_cohort(tiny_bundle.cohort)[:6]
    opened = [trained.open(case.images) for case in cases]
    fitted = fit_detector(trained, cases, ({"image": each.images[0]} for each in opened), AnomalySettings(draws=2))
    found = [fitted(each) for each in opened]
    assert [each.score for each in found] == pytest.approx(fitted.scores.tolist(), rel=1e-5)
    assert sorted(each.p_value for each in found) == pytest.approx(np.arange(1, 7) / 6)
    cases = [replace(case, patient=f"p{row % 2}") for row, case in enumerate(cases)]
    fitted = fit_detector(trained, cases, ({"image": each.images[0]} for each in opened), AnomalySettings(draws=2))
    for each in opened:  # with the three scans of the other patient
        assert 4 * fitted(each).p_value == pytest.approx(round(4 * fitted(each).p_value))


def test_a_volume_in_a_2d_bundle_has_a_map_in_its_own_space(detector, trained, tmp_path):
    path = write_scan(tmp_path / "volume.nii.gz", np.random.default_rng(0).random((1, 20, 18, 12)))
    case = trained.open(path)
    anomaly = detector(case)
    assert len(anomaly.map) == len(case.slices) > 1
    assert case.back_map(anomaly.map).shape == (1, 20, 18, 12)
    singles = [detector(trained.open(path, slice=index)) for index in case.slices]
    assert anomaly.score == max(single.score for single in singles)
    assert torch.equal(anomaly.map, torch.cat([single.map for single in singles]))
    # the held-out cases are pictures, so the p-value of a volume is corrected for the number of its slices
    assert anomaly.p_value == min(1, len(singles) * min(single.p_value for single in singles))


def test_a_volume_is_compared_with_volumes_if_there_are_some(detector):
    scores, scans = torch.tensor([1.0, 5.0, 2.0, 3.0]), torch.tensor([0, 0, 1, 1])
    of_volumes = AnomalyDetector(
        detector.settings, detector.mean_squares, scores, scans, detector.quantiles, detector.made_from
    )
    assert of_volumes.scan_scores.tolist() == [5, 3]
    assert of_volumes._p_value(torch.tensor([1.0, 4.0])) == pytest.approx(2 / 3)
    assert of_volumes._p_value(torch.tensor([4.0])) == pytest.approx(2 / 5)


def test_thresholds_are_quantiles_of_the_held_out_maps(detector):
    values = [detector.threshold(q) for q in (0, 0.5, 0.99, 0.9999, 1)]
    assert values == sorted(values)
    with pytest.raises(ConfigError, match="quantile"):
        detector.threshold(1.1)


def test_a_missing_a_damaged_and_a_stale_file_are_refused_with_the_command_to_run(bundle):
    path = bundle / "models" / "anomaly.safetensors"

    def refused(**overrides):
        return complaint(AnomalyDetector.load, load_bundle(bundle, "cpu", overrides))

    AnomalyDetector.load(load_bundle(bundle, "cpu", {"inferer#steps": 7}))  # maps do not depend on the solver
    run = "run monai-diffae anomaly bundle SCANS OUT --calibrate-with NORMAL_SCANS"
    assert refused(percentiles=[2, 98]) == f"bundle: models/anomaly.safetensors belongs to another configuration; {run}"
    rewrite(bundle, lambda tensors: {name: value * 1.01 for name, value in tensors.items()})
    assert refused() == f"bundle: models/anomaly.safetensors belongs to another model; {run}"
    path.write_bytes(b"no model")
    assert refused().startswith("anomaly.safetensors: is damaged")
    path.unlink()
    assert refused() == f"bundle: is not calibrated for anomaly maps (no models/anomaly.safetensors); {run}"
