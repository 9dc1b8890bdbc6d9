"""Plans of the latent mode: the first stage divides the grid, and counts in memory and time."""

import json
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from monai_diffae.apps.training import speed as measuring
from monai_diffae.apps.training.plan import plan
from monai_diffae.cli import build_app, parse
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.networks import FirstStage

ROOT = Path(__file__).parents[3]
OVERLAY = ROOT / "configs" / "latent_space.json"
SMALL = {"base_channels": 4, "channel_mult": [1, 2], "z_channels": 8}


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A first stage with random weights, as if it were trained: halves volumes once, to 4 channels."""
    folder = tmp_path_factory.mktemp("stage") / "my_first_stage"
    (folder / "models").mkdir(parents=True)
    config = json.loads((ROOT / "bundles" / "autoencoder_kl_3d" / "configs" / "train.json").read_text())
    config["network_def"]["autoencoder"] |= {
        "channels": [16, 16], "attention_levels": [False, False], "norm_num_groups": 4
    }  # fmt: skip
    (folder / "models" / "config.json").write_text(json.dumps(config))
    network = ConfigParser(config).get_parsed_content("network_def")
    network.latent_mean.zero_()
    network.latent_std.fill_(1)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture
def volumes(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        nib.save(nib.Nifti1Image(rng.random((30, 36, 22), np.float32), np.eye(4)), folder / f"{i}.nii")
    return folder


def settled(first_stage, **changes):
    return {**SMALL, "first_stage_bundle": str(first_stage), **changes}


def test_the_grid_is_one_that_both_networks_divide(first_stage, volumes, quick):
    result = plan(
        volumes, memory_gib=40, device="cpu", overlays=[OVERLAY], memory_only=True, overrides=settled(first_stage)
    )
    settings = result.proposal.settings
    assert (settings["spacing_mm"], settings["image_size"]) == ([1, 1, 1], [32, 36, 24])  # by 2 and once more by 2
    assert settings["batch_size"] == 2  # the overlay's
    odd = settled(first_stage, image_size=[32, 36, 21])
    with pytest.raises(ConfigError, match=r"image_size is \[32, 36, 21\]; the network needs multiples of .*, such as"):
        plan(volumes, memory_gib=4, device="cpu", overlays=[OVERLAY], memory_only=True, overrides=odd)


def test_the_first_stage_counts(first_stage, volumes):
    overrides = settled(first_stage, image_size=[128] * 3, spacing_mm=[1, 1, 1], batch_size=1)
    memory = plan(
        volumes, memory_gib=9, device="cpu", overlays=[OVERLAY], memory_only=True, overrides=overrides
    ).proposal.memory
    assert memory.passing > 3 * 16 * 4 * 128**3  # decoding: three times the first level's channels, in float32
    with pytest.raises(MachineError, match="^memory_gib: nothing fits") as caught:
        plan(volumes, memory_gib=0.3, device="cpu", overlays=[OVERLAY], memory_only=True, overrides=overrides)
    assert "latent space" not in str(caught.value)


def test_the_command_trains_with_the_overlay(first_stage, volumes, quick, run):
    options = ["--overrides", *(f"{key}={value}" for key, value in settled(first_stage).items())]
    code, printed, _ = run(
        "plan", volumes, "--memory-gib", 40, "--device", "cpu", "--overlays", OVERLAY, "--memory-only", *options
    )
    assert code == 0
    _, bound = parse(build_app(), shlex.split(printed.splitlines()[-1])[1:])
    training = bound.arguments["training"]
    assert tuple(training.overlays) == (OVERLAY,)
    assert training.overrides["first_stage_bundle"] == str(first_stage)


def test_the_first_stage_takes_time_too(first_stage, volumes, quick, monkeypatch):
    monkeypatch.setattr(measuring, "_MIN_SECONDS", 0.0)
    calls, encode = [], FirstStage.encode
    monkeypatch.setattr(FirstStage, "encode", lambda self, images: calls.append(images.shape) or encode(self, images))
    overrides = settled(first_stage, precision="fp32", image_size=[8, 8, 8])
    result = plan(volumes, memory_gib=40, device="cpu", overlays=[OVERLAY], overrides=overrides)
    assert set(calls) == {(2, 1, 8, 8, 8)}
    assert result.timed.work.num_train == 4
