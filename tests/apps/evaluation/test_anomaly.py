import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from tiny_bundles import rewrite

import monai_diffae as mdae
from monai_diffae.bundle import AnomalyDetector
from monai_diffae.data.scans import read_scan, write_scan
from monai_diffae.errors import CohortError, ConfigError, OtherResultsError


@pytest.fixture(scope="module")
def result(tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("anomaly") / "out"
    return mdae.anomaly(tiny_bundle.directory, tiny_bundle.cohort, out, split="test", num_pictures=2)


def test_maps_and_masks_have_the_shape_and_affine_of_the_scans(result, tiny_bundle):
    out = result.folder
    table, cohort = pd.read_csv(out / "anomaly.csv"), pd.read_csv(tiny_bundle.cohort).set_index("id")
    assert result.num_cases == len(table) == (cohort["split"] == "test").sum()
    assert result.num_unusual == (table["p_value"] <= 0.05).sum()
    assert table["score"].is_monotonic_decreasing
    for row in table.itertuples():
        source = nib.load(tiny_bundle.cohort.parent / cohort.loc[row.id, "image"])
        anomaly_map, mask = (nib.load(out / folder / f"{row.id}.nii.gz") for folder in ("maps", "masks"))
        assert anomaly_map.shape == mask.shape == source.shape
        assert np.array_equal(anomaly_map.affine, source.affine)
        assert np.array_equal(mask.affine, source.affine)
        assert (anomaly_map.get_data_dtype(), mask.get_data_dtype()) == (np.float32, np.uint8)
        assert set(np.unique(mask.dataobj)) <= {0, 1}
        assert np.sum(mask.dataobj) == row.mask_voxels
        assert row.mask_mm3 == pytest.approx(row.mask_voxels * abs(np.linalg.det(source.affine[:3, :3])))
    assert Image.open(out / "anomaly.png").width > 500


def test_scores_are_those_of_the_detector_whatever_else_is_in_the_run(result, tiny_bundle, tmp_path):
    out = result.folder
    table = pd.read_csv(out / "anomaly.csv").set_index("id")
    name = str(table.index[-1])
    mdae.anomaly(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "one", cases=[name])
    alone = pd.read_csv(tmp_path / "one" / "anomaly.csv").set_index("id")
    assert alone.loc[name].to_dict() == table.loc[name].to_dict()
    with pytest.raises(OtherResultsError):
        mdae.anomaly(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "one", cases=[name], quantile=0.5)
    trained = mdae.load_bundle(tiny_bundle.directory, "cpu")
    cohort = pd.read_csv(tiny_bundle.cohort).set_index("id")
    anomaly = AnomalyDetector.load(trained)(trained.open(tiny_bundle.cohort.parent / cohort.loc[name, "image"]))
    assert (anomaly.score, anomaly.p_value) == tuple(table.loc[name, ["score", "p_value"]])


def test_pictures_get_masks_as_pictures_and_bad_ones_are_listed(tiny_bundle, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, shape in {"a0": (20, 30), "a1": (20, 30), "row": (1, 200)}.items():
        pixels = np.random.default_rng(len(name)).integers(256, size=shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    result = mdae.anomaly(tiny_bundle.directory, folder, tmp_path / "out")
    assert (result.num_cases, result.num_failed) == (2, 2)
    assert "2 of 4 cases failed: see failures.csv" in result.incomplete
    failures = pd.read_csv(tmp_path / "out" / "failures.csv").set_index("file")["reason"]
    assert set(failures.index) == {"bad.png", "row.png"}
    assert "preprocessing fails at its size 1 x 200" in failures["row.png"]
    table = pd.read_csv(tmp_path / "out" / "anomaly.csv")
    assert table["mask_mm3"].isna().all()
    for row in table.itertuples():
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{row.id}.png"))
        assert mask.shape == (20, 30)
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask == 255).sum() == row.mask_voxels
        assert read_scan(tmp_path / "out" / "maps" / f"{row.id}.nii.gz").array.shape == (1, 20, 30)


def calibrated(bundle, cohort, out, **options):
    """The detector of a bundle that ``anomaly`` calibrates before it makes the map of one case."""
    mdae.anomaly(bundle, cohort, out, calibrate_with=cohort, limit=1, **options)
    return AnomalyDetector.load(mdae.load_bundle(bundle, "cpu"))


def test_a_bundle_is_calibrated_once_with_the_same_cases_and_again_with_others(bundle, tiny_bundle, tmp_path):
    options = {"calibration_split": "test", "draws": 2}
    file = bundle / "models" / "anomaly.safetensors"
    first = calibrated(bundle, tiny_bundle.cohort, tmp_path, **options)
    written = file.stat().st_mtime_ns
    calibrated(bundle, tiny_bundle.cohort, tmp_path, **options)
    assert file.stat().st_mtime_ns == written
    again = calibrated(bundle, tiny_bundle.cohort, tmp_path, **options, overwrite=True)
    assert file.stat().st_mtime_ns > written
    assert np.array_equal(first.scores, again.scores)
    fewer = calibrated(bundle, tiny_bundle.cohort, tmp_path / "fewer", **options, calibration_cases=2)
    assert len(fewer.scores) == 2


def test_a_bundle_is_not_calibrated_for_cases_that_do_not_exist(bundle, tiny_bundle, tmp_path):
    before = (bundle / "models" / "anomaly.safetensors").read_bytes()
    with pytest.raises(CohortError):
        mdae.anomaly(bundle, tiny_bundle.cohort, tmp_path, cases=["nobody"], calibrate_with=tiny_bundle.cohort, draws=2)
    assert (bundle / "models" / "anomaly.safetensors").read_bytes() == before


def test_a_bundle_that_is_not_calibrated_uses_the_validation_cases_of_its_training(bundle, tiny_bundle, tmp_path):
    (bundle / "models" / "anomaly.safetensors").unlink()
    mdae.anomaly(bundle, tiny_bundle.cohort, tmp_path, split="test", limit=1)
    detector = AnomalyDetector.load(mdae.load_bundle(bundle, "cpu"))
    assert len(detector.scores) == (pd.read_csv(tiny_bundle.cohort)["split"] == "val").sum()


def test_another_cohort_does_not_calibrate_a_bundle_unless_the_user_says_so(bundle, labelled, tmp_path):
    (bundle / "models" / "anomaly.safetensors").unlink()
    pd.read_csv(labelled.cohort).head(6).to_csv(tmp_path / "others.csv", index=False)
    with pytest.raises(ConfigError, match="run monai-diffae anomaly bundle SCANS OUT --calibrate-with NORMAL_SCANS"):
        mdae.anomaly(bundle, tmp_path / "others.csv", tmp_path / "out")


def test_a_calibration_for_another_configuration_is_not_replaced_unless_the_user_says_so(tiny_bundle, tmp_path):
    with pytest.raises(ConfigError, match="belongs to another configuration"):
        mdae.anomaly(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, overrides={"percentiles": [2, 98]})


def test_options_of_a_calibration_need_scans_to_calibrate_with(tiny_bundle, tmp_path):
    with pytest.raises(ConfigError, match="^calibrate_with: "):
        mdae.anomaly(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, noise_level=0.5)


def test_bad_scans_are_listed_and_one_patient_is_too_few(bundle, tiny_bundle, tmp_path):
    table = pd.read_csv(tiny_bundle.cohort).drop(columns="split")
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    bad = tmp_path / "bad.nii"
    bad.write_bytes((tiny_bundle.cohort.parent / "images").glob("*.nii").__next__().read_bytes()[:400])
    table.loc[3, "image"] = str(bad)
    table.to_csv(tmp_path / "cohort.csv", index=False)
    options = {"calibrate_with": tmp_path / "cohort.csv", "limit": 1, "draws": 1}
    result = mdae.anomaly(bundle, tiny_bundle.cohort, tmp_path / "out", **options)
    assert result.incomplete == "1 of 12 cases failed: see calibration_failures.csv"  # all, as the cohort has no split
    table.head(3).assign(patient="one", split="val").to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(CohortError, match="at least 2 patients"):
        calibrated(bundle, tmp_path / "one.csv", tmp_path / "one")


def test_the_lowest_p_value_of_volumes_is_that_of_a_volume_not_of_a_slice(bundle, tmp_path, caplog):
    rows = []
    for k in range(3):
        array = np.random.default_rng(k).random((1, 20, 18, 12))
        rows.append({"image": str(write_scan(tmp_path / f"{k}.nii.gz", array)), "patient": k, "split": "val"})
    pd.DataFrame(rows).to_csv(tmp_path / "volumes.csv", index=False)
    detector = calibrated(bundle, tmp_path / "volumes.csv", tmp_path / "out", draws=1)
    assert len(detector.scores) > len(detector.scan_scores) == 3
    assert "the lowest possible p-value is 0.25; 19 scans or more allow p-values of .05" in caplog.text


def test_a_model_that_estimates_nan_is_refused(bundle, tiny_bundle, tmp_path):
    """Its scores would be NaN, and NaN compares with nothing, so every case would have a p-value of 1."""
    rewrite(bundle, lambda weights: {k: v * 1e30 if k.startswith("unet") else v for k, v in weights.items()})
    with pytest.raises(ConfigError, match="bundle: its estimates are not finite; train with"):
        calibrated(bundle, tiny_bundle.cohort, tmp_path, draws=1)


@pytest.fixture(scope="module")
def against_masks(tiny_bundle, tmp_path_factory):
    """Maps of six cases: three with a mask of a lesion, two with an empty one, one with none."""
    folder = tmp_path_factory.mktemp("masked")
    table = pd.read_csv(tiny_bundle.cohort).head(6)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    for row in range(5):
        scan = nib.load(table["image"][row])
        mask = np.zeros(scan.shape, np.uint8)
        mask[2 + row : 7, 3:9] = row < 3
        table.loc[row, "mask"] = str(folder / f"{row}.nii.gz")
        nib.save(nib.Nifti1Image(mask, scan.affine), table["mask"][row])
    table.to_csv(folder / "cohort.csv", index=False)
    return mdae.anomaly(tiny_bundle.directory, folder / "cohort.csv", folder / "out"), table.set_index("id")


def test_scores_against_masks_are_those_of_the_written_files(against_masks):
    result, cohort = against_masks
    table = pd.read_csv(result.folder / "anomaly.csv").set_index("id")
    for name, mask in cohort["mask"].head(3).items():
        truth, values, found = (
            nib.load(file).get_fdata().ravel()
            for file in (mask, *(result.folder / folder / f"{name}.nii.gz" for folder in ("maps", "masks")))
        )
        assert table["reference_share"][name] == pytest.approx(truth.mean())
        assert table["auroc"][name] == pytest.approx(roc_auc_score(truth, values))
        assert table["auprc"][name] == pytest.approx(average_precision_score(truth, values))
        assert table["dice"][name] == pytest.approx(f1_score(truth, found, zero_division=0))
    assert table.count()[["reference_share", "dice"]].tolist() == [5, 3]
    assert (result.auroc, result.dice) == pytest.approx((table["auroc"].mean(), table["dice"].mean()))
    known = table.loc[cohort.index[:5]]
    assert result.case_auroc == pytest.approx(roc_auc_score(known["reference_share"] > 0, known["score"]))


def test_a_volume_in_a_2d_bundle_is_compared_within_its_slices(tiny_bundle, trained, tmp_path):
    """The mask also marks a slice that the bundle does not use."""
    image = write_scan(tmp_path / "a.nii.gz", np.random.default_rng(0).random((1, 16, 18, 4)))
    mask = np.zeros((1, 16, 18, 4))
    mask[:, 3:9, 4:8] = 1
    write_scan(tmp_path / "m.nii.gz", mask)
    pd.DataFrame({"image": [image], "mask": ["m.nii.gz"]}).to_csv(tmp_path / "one.csv", index=False)
    result = mdae.anomaly(tiny_bundle.directory, tmp_path / "one.csv", tmp_path / "out")
    values, field = nib.load(result.folder / "maps" / "a.nii.gz").get_fdata(), trained.open(image).field
    assert result.auroc == pytest.approx(roc_auc_score(mask[0][field], values[field]))


def test_other_masks_are_other_results(against_masks, tiny_bundle):
    result, cohort = against_masks
    shutil.copy(*cohort["mask"][:2])
    with pytest.raises(OtherResultsError):
        mdae.anomaly(tiny_bundle.directory, result.folder.parent / "cohort.csv", result.folder)
