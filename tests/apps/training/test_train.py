import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
from monai.bundle import ConfigWorkflow

from monai_diffae.apps.training.train import TrainResult, train
from monai_diffae.bundle import init_bundle, load_bundle, publish
from monai_diffae.bundle.last_metrics import last_usage
from monai_diffae.errors import ConfigError, DivergenceError


def test_train_fills_the_bundle_with_weights_and_their_config(tiny_bundle):
    models = tiny_bundle.directory / "models"
    assert (models / "model.pt").is_file()
    assert json.loads((models / "config.json").read_text())["image_size"] == [16, 16]
    assert not (tiny_bundle.directory / "mlflow.db").exists()  # our key `mlflow`, not MONAI's argument


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_epoch": 1}, "did you mean 'max_epochs'"),
        ({"z_channels": 9, "device": "cpu"}, "another model with other values of z_channels; "),
        ({"nope#x": 1}, "nope#x: the configuration has no such key"),
        ({"max_epochs#x": 1}, "max_epochs#x: the configuration has no such key"),
    ],
)
def test_train_raises_one_clear_error_of_ours(tiny_bundle, overrides, message):
    with pytest.raises(ConfigError, match=message):
        train(tiny_bundle.directory, tiny_bundle.cohort, overrides=overrides)


def test_train_refuses_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no configs/train\.json"):
        train(tmp_path)


def test_train_refuses_an_overlay_that_is_not_there(tiny_bundle):
    with pytest.raises(ConfigError, match=r"^overlays: there is no file gone\.json; "):
        train(tiny_bundle.directory, tiny_bundle.cohort, overlays=["gone.json"])


def test_a_training_is_resumed_without_its_overrides(tiny_bundle, tmp_path, caplog):
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train(bundle, tiny_bundle.cohort, device="cpu")
    assert "training is complete after 1 steps; nothing to do." in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train(bundle, tiny_bundle.cohort, device="cpu", overrides={"max_epochs": 2, "learning_rate": 1e-5})
    assert "resuming from step 1 of 2" in caplog.text
    settings = json.loads((bundle / "models" / "training.json").read_text())
    assert (settings["max_epochs"], settings["learning_rate"], settings["image_size"]) == (2, 1e-5, [16, 16])
    assert "device" not in settings


def test_a_bundle_run_is_resumed_with_the_remembered_settings_as_a_file(tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    files = [str(bundle / "configs" / "train.json"), str(bundle / "models" / "training.json")]
    values = {"bundle_root": str(bundle), "dataset_dir": str(tiny_bundle.cohort), "device": "cpu", "max_epochs": 2}
    workflow = ConfigWorkflow(files, logging_file=False, **values)
    workflow.initialize()
    workflow.run()
    assert json.loads((bundle / "models" / "training.json").read_text())["max_epochs"] == 2


def test_train_starts_from_a_trained_bundle_on_other_data(tiny_bundle, small_cohort, tmp_path):
    before = (tiny_bundle.directory / "models" / "model.pt").read_bytes()
    out = tmp_path / "out"
    result = train(tiny_bundle.directory, small_cohort, out, start_from=tiny_bundle.directory, device="cpu")
    assert result.folder == out
    assert (tiny_bundle.directory / "models" / "model.pt").read_bytes() == before
    trained = load_bundle(out, "cpu")
    assert trained.config["_meta_"]["data_fingerprint"] != load_bundle(tiny_bundle.directory).config["_meta_"]
    assert json.loads((out / "models" / "training.json").read_text())["max_epochs"] == 1
    train(tiny_bundle.directory, small_cohort, out, device="cpu")  # complete
    publish(out, shutil.copytree(tiny_bundle.directory, tmp_path / "served"))
    assert load_bundle(tmp_path / "served", "cpu").sha256 == trained.sha256


def test_a_failed_warm_start_leaves_the_trained_bundle(tiny_bundle, small_cohort, tmp_path):
    models = tiny_bundle.directory / "models"
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    with pytest.raises(DivergenceError, match="not finite"):
        train(
            tiny_bundle.directory, small_cohort, tmp_path / "out", start_from=tiny_bundle.directory, device="cpu",
            overrides={"learning_rate": 1e30, "max_epochs": 3},
        )  # fmt: skip
    with pytest.raises(ConfigError, match="is also the folder of the results"):
        train(tiny_bundle.directory, small_cohort, start_from=tiny_bundle.directory, device="cpu")
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before


@pytest.mark.parametrize(
    ("num_failed", "is_strict", "is_complete"),
    [(0, True, True), (1, False, True), (1, True, False), (11, False, False)],
)
def test_a_training_is_complete_if_few_cases_failed(num_failed, is_strict, is_complete):
    result = TrainResult(Path("bundle"), Path("failures.csv"), num_failed, 100, "monai-diffae embed", is_strict)
    line = f"{num_failed} of 100 cases could not be used: see failures.csv"
    assert result.incomplete == (None if is_complete else line)
    shown = ["bundle", "next: monai-diffae embed"]
    assert [*result.lines()] == ([line, *shown] if num_failed and is_complete else shown)


def test_a_training_with_a_bad_scan_counts_the_cases(tiny_bundle, tiny_settings, tmp_path):
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    (tmp_path / "bad.nii").write_bytes(b"bad")
    table.loc[table.index[table["split"] == "train"][0], "image"] = "bad.nii"
    table.to_csv(tmp_path / "cohort.csv", index=False)
    result = train(bundle, tmp_path / "cohort.csv", overrides=tiny_settings)
    assert (result.num_failed, result.num_cases) == (1, int((table["split"] != "test").sum()))
    assert last_usage(bundle) is not None
