from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scan_files import shared

import monai_diffae as mdae
from monai_diffae.bundle import AnomalyDetector
from monai_diffae.data.scans import read_scan
from monai_diffae.errors import ConfigError


@pytest.fixture(scope="module")
def found(tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("anomaly") / "out"
    return out, mdae.anomaly(tiny_bundle.directory, tiny_bundle.cohort, out, split="test", num_pictures=2)


def test_maps_and_masks_have_the_shape_and_affine_of_the_scans(found, tiny_bundle):
    out, result = found
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


def test_scores_are_those_of_the_detector_whatever_else_is_in_the_run(found, tiny_bundle, tmp_path):
    out, _ = found
    table = pd.read_csv(out / "anomaly.csv").set_index("id")
    name = str(table.index[-1])
    mdae.anomaly(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "one", cases=[name])
    alone = pd.read_csv(tmp_path / "one" / "anomaly.csv").set_index("id")
    assert alone.loc[name].to_dict() == table.loc[name].to_dict()
    trained = mdae.load_bundle(tiny_bundle.directory, "cpu")
    cohort = pd.read_csv(tiny_bundle.cohort).set_index("id")
    anomaly = AnomalyDetector.load(trained)(trained.open(tiny_bundle.cohort.parent / cohort.loc[name, "image"]))
    assert (anomaly.score, anomaly.p_value) == tuple(table.loc[name, ["score", "p_value"]])


def test_complete_results_are_skipped_and_others_refused(found, tiny_bundle):
    out, result = found
    again = mdae.anomaly(tiny_bundle.directory, tiny_bundle.cohort, out, split="test", num_pictures=2)
    assert again.skipped
    assert again.num_cases == result.num_cases
    with pytest.raises(ConfigError, match="made with other quantile"):
        mdae.anomaly(tiny_bundle.directory, tiny_bundle.cohort, out, split="test", num_pictures=2, quantile=0.5)


def test_pictures_get_masks_as_pictures_and_have_no_mm(tiny_bundle, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(256, size=(20, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"a{i}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    result = mdae.anomaly(tiny_bundle.directory, folder, tmp_path / "out")
    assert (result.num_cases, result.num_failed) == (2, 1)
    assert "1 of 3 cases failed: see failures.csv" in result.incomplete
    table = pd.read_csv(tmp_path / "out" / "anomaly.csv")
    assert table["mask_mm3"].isna().all()
    for row in table.itertuples():
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{row.id}.png"))
        assert mask.shape == (20, 30)
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask == 255).sum() == row.mask_voxels
        assert read_scan(tmp_path / "out" / "maps" / f"{row.id}.nii.gz").array.shape == (1, 20, 30)


def test_volumes_of_a_3d_bundle_show_the_planes_through_the_highest_value(tiny_bundle_3d, tmp_path):
    mdae.calibrate(tiny_bundle_3d.directory, tiny_bundle_3d.cohort, split="train", draws=1)
    mdae.anomaly(tiny_bundle_3d.directory, tiny_bundle_3d.cohort, tmp_path / "out", limit=2)
    assert Image.open(tmp_path / "out" / "anomaly.png").width > 500
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2


def test_a_volume_is_one_case_of_a_2d_bundle_and_comes_back_in_its_own_space(tiny_bundle, tmp_path):
    source = shared("hippocampus_msd/images/hippocampus_001.nii.gz")
    overrides = {"slice_range": [0.4, 0.6], "slice_step": 3}
    mdae.anomaly(tiny_bundle.directory, source, tmp_path / "out", overrides=overrides, quantile=0.5)
    table = pd.read_csv(tmp_path / "out" / "anomaly.csv")
    assert table["id"].tolist() == ["hippocampus_001"]
    scan = nib.load(source)
    for folder in ("maps", "masks"):
        image = nib.load(tmp_path / "out" / folder / "hippocampus_001.nii.gz")
        assert image.shape == scan.shape
        assert np.array_equal(image.affine, scan.affine)
    num_slices = np.count_nonzero(np.asarray(image.dataobj).any(axis=(0, 1)))
    assert 1 <= num_slices <= 3
    name = f"hippocampus_001_z{int(0.4 * scan.shape[2]):03d}"
    result = mdae.anomaly(tiny_bundle.directory, source, tmp_path / "one", overrides=overrides, cases=[name])
    assert (tmp_path / "one" / "maps" / f"{name}.nii.gz").is_file()
    assert result.num_cases == 1


def test_unusual_bundles(unusual, tmp_path):
    mdae.calibrate(unusual.bundle, unusual.cohort, split="train", draws=1)
    result = mdae.anomaly(unusual.bundle, unusual.cohort, tmp_path / "out", limit=2)
    assert (result.num_cases, result.num_failed) == (2, 0)


def test_the_program_lists_how_many_cases_are_unusual(run, tiny_bundle, tmp_path):
    code, out, _ = run("anomaly", tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "out", "--limit", 2)
    assert code == 0
    assert "of 2 cases have a p-value of at most .05" in out


def test_an_image_at_which_the_preprocessing_fails_is_listed_and_the_others_are_done(tiny_bundle, tmp_path):
    """MONAI's Resize cannot smooth an image of one row."""
    rng = np.random.default_rng(0)
    for name, shape in (("row", (1, 200)), ("square", (40, 40))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(tmp_path / f"{name}.png")
    table = pd.DataFrame({"image": ["row.png", "square.png"], "split": "test"})
    table.to_csv(tmp_path / "cohort.csv", index=False)
    result = mdae.anomaly(tiny_bundle.directory, tmp_path / "cohort.csv", tmp_path / "out")
    assert (result.num_cases, result.num_failed) == (1, 1)
    assert "preprocessing fails at its size 1 x 200" in (tmp_path / "out" / "failures.csv").read_text()
