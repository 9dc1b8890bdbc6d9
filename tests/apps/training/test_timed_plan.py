"""Plans in minutes: the finest grid on which a training ends in time, on a machine of a known speed."""

import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from monai_diffae.apps.training import planning, proposals, timed_plans
from monai_diffae.apps.training.plan import plan
from monai_diffae.apps.training.speed import Speed
from monai_diffae.apps.training.timetables import START_S, Work
from monai_diffae.cli import build_app, parse
from monai_diffae.engines.memory import Memory

CONFIG = {"num_pictures": 4, "calibration_cases": 64, "ema_decay": 0.999, "max_epochs": 1, "max_minutes": None,
          "val_interval": 5}  # fmt: skip


@pytest.fixture
def heads(tmp_path):
    """Ten volumes of 64 x 80 x 64 voxels of 3 mm."""
    rng = np.random.default_rng(0)
    for i in range(10):
        volume = nib.Nifti1Image(rng.integers(0, 100, (64, 80, 64), np.uint8), np.diag([3.0, 3.0, 3.0, 1.0]))
        nib.save(volume, tmp_path / f"{i}.nii")
    return tmp_path


@pytest.fixture
def machine(monkeypatch):
    """A machine that trains on a given number of pixels per second, at a width of 16; it keeps what it measured.

    Memory is by a rule of thumb: 10 KiB per voxel and image.
    """
    measured = []

    def run_memory(network, workload):
        width = network.unet.config["base_channels"] / 16
        return Memory(0, int(np.prod(workload.image_shape) * 10 * 2**10 * workload.batch_size * width), 0, 0)

    monkeypatch.setattr(proposals, "run_memory", run_memory)

    def make(pixels_per_second):
        def measure(config, device, items, batch_size):
            parser = ConfigParser(dict(config))
            size, width = parser.get("image_size"), parser.get("base_channels")
            measured.append(size)
            return Speed(batch_size * np.prod(size) * (width / 16) ** 2 / pixels_per_second, batch_size, 0.1)

        monkeypatch.setattr(planning, "measure_speed", measure)
        return measured

    return make


@pytest.mark.slow
def test_more_minutes_and_faster_machines_give_finer_grids_that_end_in_time(heads, machine):
    voxels = []
    for pixels_per_second, minutes in ((2e4, 10), (1e5, 60), (1e6, 60)):
        measured = machine(pixels_per_second)
        result = plan(heads, minutes=minutes, device="cpu", memory_gib=4)
        assert 0.5 * 60 * minutes < result.predicted_s <= 60 * minutes
        assert result.timed.timetable.num_images >= result.timed.needed_images
        assert result.settings["image_size"] in measured
        assert len(measured) <= 6
        voxels.append(np.prod(result.settings["image_size"]))
    assert voxels[0] < voxels[1] < voxels[2]


def test_the_coarsest_grid_with_a_warning_if_the_time_is_too_short(heads, machine, run):
    machine(1000)
    code, printed, _ = run("plan", heads, "--minutes", 2, "--device", "cpu", "--memory-gib", 4)
    assert code == 0
    assert "image_size: [8, 12, 8]" in printed
    assert "z_sem may hardly be used after so few images; about 1500 are needed: give more minutes" in printed
    machine(10)
    _, printed, _ = run("plan", heads, "--minutes", 2, "--device", "cpu", "--memory-gib", 4)
    assert "even one epoch takes longer than the given time, so max_minutes will end it early" in printed


@pytest.mark.parametrize(("seconds_per_step", "is_enough"), [(0.1, True), (1.0, False)])
def test_a_grid_on_which_not_even_one_epoch_ends_in_time_is_not_chosen(seconds_per_step, is_enough):
    """20,000 images are enough for z_sem, but one epoch takes 1,250 steps."""
    candidate = timed_plans._Candidate({"image_size": [64, 64], "base_channels": 16})
    speed, budget_s = Speed(seconds_per_step, 16), 600.0
    search = timed_plans._Search(None, [candidate], timed_plans.Work(20_000, 10, {}, {}), budget_s)
    timetable = search.work.timetable(speed, budget_s)
    assert timetable.num_images >= 20_000 - 16
    assert search.is_enough(0, timetable, speed) is is_enough


def test_small_grids_have_fewer_levels_and_more_cells(heads, machine):
    machine(2e4)
    settings = plan(heads, device="cpu", memory_gib=4).settings
    assert settings["channel_mult"] == [1, 2, 4]
    assert settings["z_grid"] == [min(4, side // 4) for side in settings["image_size"]]
    settled = {"channel_mult": [1, 2], "z_grid": 1, "image_size": [20, 20, 20], "max_epochs": 7}
    settings = plan(heads, device="cpu", memory_gib=4, overrides=settled).settings
    assert settled.items() <= settings.items()


def test_the_finest_grid_gets_a_wider_network(tmp_path, machine):
    for i in range(9):
        Image.fromarray(np.full((64, 64), i, np.uint8)).save(tmp_path / f"{i}.png")
    machine(1e7)
    settings = plan(tmp_path, device="cpu", memory_gib=4).settings
    assert settings["image_size"] == [64, 64]
    assert settings["base_channels"] == 64


def test_settings_that_are_decided_also_say_how_many_images_there_are(heads, machine):
    machine(1e5)
    images = {}
    for step in (1, 4):
        slices = {"slice_step": step, "slice_range": [0.2, 0.8], "max_epochs": 1, "batch_size": 1}
        result = plan(heads, bundle=Path("diffae_2d"), minutes=10, device="cpu", memory_gib=4, overrides=slices)
        images[step] = result.timed.timetable.num_images
    assert images[1] > 3 * images[4]


@pytest.mark.slow
def test_memory_still_is_a_bound(heads, machine):
    machine(1e9)
    little, much = (plan(heads, minutes=600, device="cpu", memory_gib=gib) for gib in (0.2, 4))
    assert little.proposal.memory.gib <= 0.2
    assert np.prod(little.settings["image_size"]) < np.prod(much.settings["image_size"])


def test_the_command_ends_with_the_epochs_of_a_training(heads, machine, run):
    machine(1e5)
    code, printed, _ = run("plan", heads, "--device", "cpu", "--memory-gib", 4)
    assert code == 0
    _, bound = parse(build_app(), shlex.split(printed.splitlines()[-1])[1:])
    overrides = bound.arguments["training"].overrides
    assert {"image_size", "spacing_mm", "base_channels", "batch_size", "max_epochs", "max_minutes"} <= overrides.keys()
    assert bound.args[0] == Path("my_bundle")


@pytest.mark.parametrize(("num_train", "seconds_per_step"), [(3, 0.5), (100, 0.01), (5000, 0.5)])
def test_a_timetable_fills_the_budget(num_train, seconds_per_step):
    work = Work(num_train, max(1, num_train // 10), CONFIG, {})
    table = work.timetable(Speed(seconds_per_step, min(8, num_train), 0.01), 600)
    settings = table.settings
    assert 0.7 * 600 < table.total_s <= 600
    assert 60 * settings["max_minutes"] <= 600 - START_S
    assert table.num_steps == settings["max_epochs"] * max(1, num_train // 8)
    assert 1 <= settings["max_epochs"] / settings["val_interval"] <= 8
    assert 1 / (1 - settings["ema_decay"]) <= max(10, table.num_steps / 10)


def test_a_timetable_keeps_what_is_decided_and_only_names_keys_of_the_bundle():
    config = {"ema_decay": 0.5, "max_epochs": 1}
    table = Work(100, 10, config, {"max_epochs": 3, "z_grid": 2}).timetable(Speed(1.0, 10, 0), 600)
    assert table.settings == {"max_epochs": 3, "ema_decay": 0.5, "z_grid": 2}
    assert table.seconds["training"] == pytest.approx(30.6)  # with a checkpoint for each epoch


def test_probes_take_a_small_share_of_the_time_or_none():
    config = {**CONFIG, "probe_interval": 5}
    speed, without = Speed(0.1, 10), Work(300, 50, CONFIG, {}, num_labels=3).timetable(Speed(0.1, 10), 600)
    assert "probe_interval" not in without.settings  # a bundle of before
    table = Work(300, 50, config, {}, num_labels=3).timetable(speed, 600)
    assert 0 < table.settings["probe_interval"] <= table.settings["max_epochs"]
    assert table.seconds["validation"] - without.seconds["validation"] < 0.03 * 600
    assert table.total_s <= 600
    assert table.settings["max_minutes"] < without.settings["max_minutes"]
    assert Work(300, 50, config, {}, num_labels=8).timetable(speed, 60).settings["probe_interval"] == 0
    for work in (Work(300, 50, config, {}), Work(300, 50, config, {"probe_interval": 0}, num_labels=3)):
        assert work.timetable(speed, 600).settings["probe_interval"] == 0
