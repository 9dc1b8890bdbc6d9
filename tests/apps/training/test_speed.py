"""The measured speed of a training: steps of the real trainer on a few scans."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffae.apps.training import speed as measuring
from monai_diffae.apps.training.speed import Speed, fastest, measure_speed

BUNDLES = Path(__file__).parents[3] / "bundles"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "_MIN_SECONDS", 0.0)


def test_what_follows_from_a_step():
    speed = Speed(seconds_per_step=0.5, batch_size=4, seconds_per_scan=0.25)
    assert speed.images_per_second == 8
    assert str(speed) == "0.5 s per step of 4 images, 8 images per second"
    assert speed.figures() == {"seconds_per_step": 0.5, "images_per_second": 8, "seconds_per_scan": 0.25}


def test_it_is_the_bundles_own_trainer_in_2d_and_for_a_second_modality(tmp_path):
    config = json.loads((BUNDLES / "diffae_2d" / "configs" / "train.json").read_text())
    config |= {
        "image_keys": ["image", "encoder_image"], "encoder_key": "encoder_image", "image_size": [16, 16],
        "accumulation_steps": 2, "base_channels": 4, "channel_mult": [1, 2], "cache_gib": 0,  # the cache is on the disk
    }  # fmt: skip
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24), np.uint8)).save(tmp_path / "a.png")
    items = [{"image": str(tmp_path / "a.png"), "encoder_image": str(tmp_path / "a.png"), "id": "a"}]
    speed = measure_speed(config, "cpu", items, batch_size=3)
    assert speed.batch_size == 3
    assert speed.seconds_per_step > 0
    assert speed.seconds_per_scan > 0
    assert config["train"]["trainer"]["train_handlers"] != "$[@ema]"  # what was given is as it was


@pytest.mark.parametrize(("several", "one", "expected"), [(1.0, 1.6, None), (1.0, 0.9, None), (1.0, 0.1, 1)])
def test_one_thread_is_used_where_it_is_clearly_faster(several, one, expected):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        seconds = {1: one, 2: several}
        speed, threads = fastest(lambda: Speed(seconds[torch.get_num_threads()], 1))
        assert threads == expected
        assert speed.seconds_per_step == (one if expected else several)
        assert torch.get_num_threads() == (expected or 2)
    finally:
        torch.set_num_threads(before)
