"""What an evaluation says about the use of z_sem and its stability."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_bundles import rewrite

from monai_diffae import evaluate

QUICK = {"steps": [2], "draws": 1, "num_images": 0, "num_codes": 0, "device": "cpu"}


def diagnosed(bundle, cohort, out, **options):
    return evaluate(out, bundle=bundle, cohort=cohort, **{**QUICK, "num_levels": 3, **options})


@pytest.fixture(scope="module")
def report(labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("diagnosed")
    return diagnosed(labelled.bundle, labelled.cohort, out, figure_format="pdf", dpi=30)


def usage(report):
    """The rows of z_sem_usage by timestep; None: over all levels."""
    return {row["timestep"]: row for row in report.figures["rows"] if row["metric"] == "z_sem_usage"}


def test_losses_by_level(report):
    levels = pd.read_csv(report.folder / "tables" / "noise_levels.csv")
    assert levels["timestep"].tolist() == [166, 500, 833]
    assert (levels["log_snr"].diff()[1:] < 0).all()
    np.testing.assert_allclose(levels["z_sem_usage"], levels["loss_other"] / levels["loss_own"])
    np.testing.assert_allclose(levels["z_sem_usage_mean"], levels["loss_mean"] / levels["loss_own"])
    assert usage(report)[None]["value"] == pytest.approx(levels["loss_other"].sum() / levels["loss_own"].sum())
    assert not np.allclose(levels["z_sem_usage"], 1, atol=1e-6)


def test_intervals_of_the_use_of_z_sem(report):
    assert all(row["low"] < row["value"] < row["high"] for row in usage(report).values())


def test_stability(report):
    rows = pd.read_csv(report.folder / "tables" / "stability.csv").set_index("change")
    assert rows["ratio"]["noise 1 %"] < rows["ratio"]["noise 5 %"]
    assert rows["rank_1"]["noise 1 %"] == 1


def test_the_chart(report):
    with Image.open(report.folder / "diagnosis.png") as picture:
        assert np.asarray(picture).std() > 10
        assert picture.width == 390  # 13 inches
    assert b"/Type3" not in (report.folder / "diagnosis.pdf").read_bytes()


def test_the_batch_does_not_matter(report, labelled, tmp_path):
    other = diagnosed(labelled.bundle, labelled.cohort, tmp_path, batch_size=2)
    before, after = ([row["value"] for row in usage(each).values()] for each in (report, other))
    np.testing.assert_allclose(before, after, rtol=1e-5)


@pytest.mark.slow
def test_other_scans_of_a_patient_are_compared_and_not_taken_for_other_patients(labelled, tmp_path):
    table = pd.read_csv(labelled.cohort).iloc[:8]
    table["patient"] = [f"p{i // 2}" for i in range(8)]
    table["split"] = "test"
    for i in range(0, 8, 2):  # the second scan is the first once more, in another file
        copy = tmp_path / f"again_{i}.nii.gz"
        shutil.copy(table["image"][i], copy)
        table.loc[i + 1, "image"] = str(copy)
    table.to_csv(tmp_path / "twice.csv", index=False)
    result = diagnosed(labelled.bundle, tmp_path / "twice.csv", tmp_path / "o")
    rows = pd.read_csv(result.folder / "tables" / "stability.csv").set_index("change")
    assert rows.loc["other scan", ["ratio", "rank_1", "num_cases"]].tolist() == [0, 1, 8]


def test_a_decoder_that_ignores_z_sem_has_a_usage_of_1_and_a_chart_beside_that_of_others(labelled, tmp_path, caplog):
    ignoring = shutil.copytree(labelled.bundle, tmp_path / "ignoring")

    def without_z_sem(weights):
        return {name: 0 * value if "z_proj" in name or "z_map" in name else value for name, value in weights.items()}

    rewrite(ignoring, without_z_sem)
    result = diagnosed([labelled.bundle, ignoring], labelled.cohort, tmp_path / "o")
    levels = pd.read_csv(result.folder / "tables" / "noise_levels.csv").set_index("bundle").loc["ignoring"]
    np.testing.assert_allclose(levels[["z_sem_usage", "z_sem_usage_mean"]], 1, atol=1e-6)
    assert set(levels["own_is_better"]) == {0.5}  # by chance: equal losses
    assert "z_sem_usage 1.000: the decoder hardly uses z_sem" in caplog.text
    assert {file.name for file in result.folder.glob("*.png")} == {"diagnosis_bundle.png", "diagnosis_ignoring.png"}


@pytest.mark.parametrize("unusual", ["two_modalities"], indirect=True)
def test_the_encoders_own_image_is_what_changes(unusual, tmp_path):
    result = diagnosed(unusual.bundle, unusual.cohort, tmp_path / "o", split="train", not_held_out=True)
    rows = pd.read_csv(result.folder / "tables" / "stability.csv").set_index("change")
    assert rows["ratio"]["flip left-right"] > rows["ratio"]["noise 1 %"] > 0


def test_one_patient_is_too_few_and_no_levels_are_no_diagnosis(labelled, tmp_path):
    one = diagnosed(labelled.bundle, labelled.cohort, tmp_path / "one", limit=1)
    (reason,) = [each["reason"] for each in one.figures["omitted"] if each["metric"] == "z_sem_usage"]
    assert reason.startswith("all cases are of one patient")
    none = diagnosed(labelled.bundle, labelled.cohort, tmp_path / "none", num_levels=0)
    assert {row["table"] for row in none.figures["rows"]} == {"reconstruction", "z_sem_only"}
