import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_bundles import rewrite

from monai_diffae import diagnose, embed
from monai_diffae.errors import CohortError, ConfigError

SETTINGS = {"split": None, "num_levels": 3, "figure_format": "pdf", "dpi": 30}


def diagnosed(labelled, out, **options):
    return diagnose(labelled.bundle, labelled.cohort, out, device="cpu", **{**SETTINGS, **options})


@pytest.fixture(scope="module")
def report(labelled, tmp_path_factory):
    return diagnosed(labelled, tmp_path_factory.mktemp("diagnosed"))


def test_losses_by_level(report):
    levels = pd.read_csv(report.folder / "noise_levels.csv")
    assert levels["timestep"].tolist() == [166, 500, 833]
    assert (levels["log_snr"].diff()[1:] < 0).all()
    np.testing.assert_allclose(levels["z_sem_usage"], levels["loss_other"] / levels["loss_own"])
    np.testing.assert_allclose(levels["z_sem_usage_mean"], levels["loss_mean"] / levels["loss_own"])
    assert report.z_sem_usage == pytest.approx(levels["loss_other"].sum() / levels["loss_own"].sum())
    assert levels["loss_own"].nunique() == 3
    assert not np.allclose(levels["z_sem_usage"], 1, atol=1e-6)


def test_stability_and_dimensions(report):
    rows = pd.read_csv(report.folder / "stability.csv").set_index("change")
    assert "other scan" not in rows.index
    assert rows["ratio"]["noise 1 %"] < rows["ratio"]["noise 5 %"]
    assert rows["ratio"]["shift 1 left-right"] > 0
    assert rows["rank_1"]["noise 1 %"] == 1
    dims = report.dimensions
    assert dims["dims"] == 8
    assert 1 <= dims["active"] <= 8
    assert 1 <= dims["participation_ratio"] <= 8
    with Image.open(report.folder / "diagnosis.png") as picture:
        assert np.asarray(picture).std() > 10
        assert picture.width == 390  # 13 inches
    assert b"/Type3" not in (report.folder / "diagnosis.pdf").read_bytes()


def test_the_batch_does_not_matter_but_other_levels_and_resolutions_do(report, labelled, tmp_path):
    other = diagnosed(labelled, tmp_path / "o", batch_size=5)
    before, after = (pd.read_csv(folder / "noise_levels.csv") for folder in (report.folder, other.folder))
    np.testing.assert_allclose(before, after, rtol=1e-5)
    with pytest.raises(ConfigError, match="made with other dpi"):
        diagnosed(labelled, report.folder, dpi=300)
    with pytest.raises(ConfigError, match="made with other num_levels"):
        diagnosed(labelled, report.folder, num_levels=2)
    assert "mni" not in (report.folder / "record.json").read_text()


@pytest.mark.slow
def test_other_scans_of_a_patient_are_compared_and_not_taken_for_other_patients(labelled, tmp_path):
    table = pd.read_csv(labelled.cohort).iloc[:8]
    table["patient"] = [f"p{i // 2}" for i in range(8)]
    table["split"] = "val"
    for i in range(0, 8, 2):  # the second scan is the first once more, in another file
        copy = tmp_path / f"again_{i}.nii.gz"
        shutil.copy(table["image"][i], copy)
        table.loc[i + 1, "image"] = str(copy)
    table.to_csv(tmp_path / "twice.csv", index=False)
    result = diagnose(labelled.bundle, tmp_path / "twice.csv", tmp_path / "o", num_levels=1, device="cpu")
    rescans = next(row for row in result.stability if row["change"] == "other scan")
    assert (rescans["ratio"], rescans["rank_1"], rescans["num_cases"]) == (0, 1, 8)


def test_a_decoder_that_ignores_z_sem_has_a_usage_of_1(labelled, tmp_path):
    bundle = shutil.copytree(labelled.bundle, tmp_path / "bundle")

    def without_z_sem(weights):
        using = {name for name in weights if "z_proj" in name or "z_map" in name}
        assert using, sorted(weights)
        return {name: 0 * weight if name in using else weight for name, weight in weights.items()}

    rewrite(bundle, without_z_sem)
    result = diagnose(bundle, labelled.cohort, tmp_path / "o", split=None, num_levels=2, device="cpu")
    assert result.z_sem_usage == pytest.approx(1, abs=1e-6)
    assert result.z_sem_usage_mean == pytest.approx(1, abs=1e-6)
    assert [row["own_is_better"] for row in result.noise_levels] == [0.5, 0.5]  # by chance: equal losses


@pytest.mark.parametrize("unusual", ["two_modalities"], indirect=True)
def test_the_encoders_own_image_is_what_changes(unusual, tmp_path):
    result = diagnose(unusual.bundle, unusual.cohort, tmp_path / "o", split=None, num_levels=1, device="cpu")
    assert result.num_cases == 10
    rows = {row["change"]: row for row in result.stability}
    assert rows["flip left-right"]["ratio"] > rows["noise 1 %"]["ratio"] > 0
    table = pd.read_parquet(embed(unusual.bundle, unusual.cohort, tmp_path / "e", device="cpu").path)
    assert result.dimensions["dims"] == len(table.filter(regex=r"z_\d+").columns)


def test_the_command_uses_only_validation_cases_by_default(run, labelled, tmp_path, caplog):
    splits = pd.read_csv(labelled.cohort)["split"].value_counts()
    model = [labelled.bundle, labelled.cohort]
    options = ["--device", "cpu", "--num-levels", 1]
    code, printed, error = run("diagnose", *model, tmp_path / "o", *options, "--split", "train")
    assert code == 0, error
    assert printed.startswith("z_sem_usage 1.")
    assert printed.splitlines()[0].endswith(f"{splits['train']} cases)")
    assert "dimensions active" in printed
    assert "z_sem_usage" in caplog.text
    code, printed, _ = run("--quiet", "diagnose", *model, tmp_path / "val", *options, "--limit", 100, "--json")
    assert json.loads(printed)["dimensions"]["dims"] == 8
    assert json.loads(printed)["num_cases"] == splits["val"]
    with pytest.raises(CohortError, match="all cases are of one patient"):  # the first two are not both for validation
        diagnose(*model, tmp_path / "one", num_levels=1, device="cpu", limit=1)
