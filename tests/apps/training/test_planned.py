"""``train --minutes``: the plan becomes the settings of the training, which remembers them."""

import json
import logging

import pytest

from monai_diffae.apps.training import planned, planning, proposals
from monai_diffae.apps.training.speed import Speed
from monai_diffae.apps.training.timetables import Timetable
from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.engines.memory import Memory
from monai_diffae.errors import ConfigError


@pytest.fixture(autouse=True)
def memory_suffices(monkeypatch):
    """On a busy machine, predictions of memory took so long that the minutes were too few for the planned epochs."""
    monkeypatch.setattr(proposals, "run_memory", lambda network, workload: Memory(0, 0, 0, 0))


def test_a_training_in_minutes_plans_once(small_cohort, tmp_path, tiny_settings, monkeypatch, caplog):
    """10 training images of 16 x 16 in batches of 4: 2 steps an epoch, 3 epochs in 2 minutes at 12 s per step."""
    monkeypatch.setattr(planning, "measure_speed", lambda config, device, items, batch_size: Speed(12.0, batch_size))
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    overrides = {key: value for key, value in tiny_settings.items() if key not in ("max_epochs", "device")}
    overrides["calibration_cases"] = 0
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train(bundle, small_cohort, minutes=2, device="cpu", overrides=overrides)
    assert "predicted time: 0:01:" in caplog.text
    settings = json.loads((bundle / "models" / "training.json").read_text())
    assert (settings["max_epochs"], settings["image_size"], settings["base_channels"]) == (3, [16, 16], 8)
    assert settings["max_minutes"] < 2
    monkeypatch.setattr(planned, "plan", lambda *args, **kwargs: pytest.fail("a second plan"))
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train(bundle, small_cohort, minutes=2, device="cpu")
    assert "the training continues with the plan that it began with" in caplog.text
    assert "training is complete after 6 steps" in caplog.text


def test_a_training_in_minutes_keeps_the_network_that_it_starts_from(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "measure_speed", lambda config, device, items, batch_size: Speed(12.0, batch_size))
    out = tmp_path / "out"
    train(tiny_bundle.directory, tiny_bundle.cohort, out, start_from=tiny_bundle.directory, minutes=2, device="cpu")
    settings = json.loads((out / "models" / "training.json").read_text())
    assert (settings["image_size"], settings["channel_mult"]) == ([16, 16], [1, 2])
    assert settings["max_epochs"] > 1


def test_the_steps_end_in_time_although_reading_took_long(small_cohort, tmp_path, tiny_settings, monkeypatch, caplog):
    monkeypatch.setattr(planning, "measure_speed", lambda config, device, items, batch_size: Speed(12.0, batch_size))
    monkeypatch.setattr(Timetable, "steps_end_s", -1.0)
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    overrides = {key: value for key, value in tiny_settings.items() if key not in ("max_epochs", "device")}
    train(bundle, small_cohort, minutes=2, device="cpu", overrides=overrides)
    assert "max_minutes: 0 minutes are over at step 1 of 6; the other steps are left out" in caplog.text


def test_a_bundle_that_does_not_exist_is_not_taken_for_a_shipped_one(tmp_path):
    with pytest.raises(
        ConfigError, match=r"mine: there is no configs/train.json; make a bundle with monai-diffae init"
    ):
        train(tmp_path / "mine", minutes=2, device="cpu")


def test_a_training_in_minutes_needs_a_cohort(tmp_path):
    with pytest.raises(ConfigError, match="cohort: is required"):
        train(init_bundle(tmp_path / "bundle", "diffae_2d"), minutes=2, device="cpu")
