"""The measured time of a training: steps of the real trainer, and what follows from them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from monai_diffae.apps.training import planning
from monai_diffae.apps.training import speed as measuring
from monai_diffae.apps.training.plan import plan
from monai_diffae.apps.training.speed import Speed, measure_speed
from monai_diffae.errors import ConfigError, MachineError

BUNDLES = Path(__file__).parents[3] / "bundles"
TINY = {
    "base_channels": 4, "channel_mult": [1, 2], "z_channels": 8,
    "spacing_mm": [1, 1, 1], "image_size": [8, 8, 8], "batch_size": 2, "precision": "fp32", "max_epochs": 5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "_MIN_SECONDS", 0.0)


def cohort(folder, count=10):
    """Volumes, one of which is named by the table and broken; the table calls things by other names."""
    rng = np.random.default_rng(0)
    for i in range(count):
        nib.save(nib.Nifti1Image(rng.random((8, 8, 8), np.float32), np.eye(4)), folder / f"{i}.nii")
    (folder / "0.nii").write_bytes(b"bad")
    splits = ["train"] * (count - 3) + ["val", "val", "test"]
    pd.DataFrame({"file": [f"{i}.nii" for i in range(count)], "split": splits}).to_csv(folder / "c.csv", index=False)
    return folder / "c.csv"


def test_what_follows_from_a_step():
    speed = Speed(seconds_per_step=0.5, batch_size=4, num_images=90, num_epochs=100)
    assert (speed.images_per_second, speed.training_s) == (8, 1100)  # the last 2 images of an epoch wait
    assert str(speed) == (
        "0.5 s per step of 4 images, 8 images per second; 100 epochs of 90 images take about 0:18:20, without reading "
        "and validation"
    )


def test_the_plan_measures_on_demand_with_the_cohorts_own_split(tmp_path, run):
    table = cohort(tmp_path)
    options = ["--columns", "image=file", "--memory-gib", 4, "--device", "cpu", "--overrides"]
    options += [f"{key}={value}" for key, value in TINY.items()]
    code, printed, _ = run("plan", table, *options, "--measure", "--json")
    assert code == 3  # one cannot be used
    measured = json.loads(printed)["speed"]
    assert (measured["num_images"], measured["num_epochs"]) == (6, 5)
    assert measured["images_per_second"] == pytest.approx(2 / measured["seconds_per_step"], rel=1e-3)
    assert measured["training_s"] == pytest.approx(5 * 3 * measured["seconds_per_step"], rel=1e-3)
    assert json.loads(run("plan", table, *options, "--json")[1])["speed"] is None
    assert "images per second; 5 epochs of 6 images take about 0:00:0" in run("plan", table, *options, "--measure")[1]


def test_it_is_the_bundles_own_trainer_in_2d_and_for_a_second_modality(monkeypatch):
    config = json.loads((BUNDLES / "diffae_2d" / "configs" / "train.json").read_text())
    config |= {
        "image_keys": ["image", "encoder_image"], "encoder_key": "encoder_image", "image_size": [16, 16],
        "batch_size": 64, "max_epochs": 7, "accumulation_steps": 2,
    }  # fmt: skip
    config |= {"base_channels": 4, "channel_mult": [1, 2]}
    speed = measure_speed(config, "cpu", num_images=3)
    assert (speed.batch_size, speed.num_images, speed.num_epochs) == (3, 3, 7)
    assert 0 < speed.seconds_per_step < 5
    assert config["train"]["trainer"]["train_handlers"] != "$[@ema]"  # what was given is as it was


def test_what_this_machine_cannot_hold_is_not_tried(tmp_path, monkeypatch):
    table, settings = cohort(tmp_path), {"columns": {"image": "file"}, "memory_gib": 4, "overrides": TINY}
    monkeypatch.setattr(planning, "free_memory", lambda device: 1000)
    with pytest.raises(MachineError, match="^measure: the proposal needs 0.* GiB, and 0.00 GiB are free on cpu"):
        plan(table, **settings, device="cpu", measure=True)
    with pytest.raises(ConfigError, match="device: there is no 'banana'"):
        plan(table, **settings, device="banana", measure=True)
