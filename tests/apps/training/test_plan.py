"""Plans: the grid, what fits, what ends in time, the command that they end with; also in the latent mode."""

import json
import shlex
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from monai_diffae import plan as plan_command
from monai_diffae.apps.training.speed import START_S, Speed, Work, grid_2d, grid_3d, measure_speed
from monai_diffae.bundle.description import describe
from monai_diffae.bundle.model_file import write_model
from monai_diffae.cli import build_app, parse
from monai_diffae.data.inspection.survey import Survey
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.networks import FirstStage

ROOT = Path(__file__).parents[3]
OVERLAY = ROOT / "configs" / "latent_space.json"
SMALL = {"base_channels": 4, "channel_mult": [1, 2], "z_channels": 8}
FINE = {"base_channels": 16, "channel_mult": [1, 2]}


def plan(cohort, **options):
    return plan_command(cohort, **options).plan


def survey(sizes, spacings):
    return Survey([str(i) for i in range(len(sizes))], np.array(sizes), np.array(spacings, float))


def save(path, shape):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([1.0, 1.0, 5.0, 1.0])), path)


@pytest.fixture
def volumes(tmp_path):
    """Nine volumes of 30 x 36 x 10 voxels of 1 x 1 x 5 mm and one that is larger."""
    for i in range(9):
        save(tmp_path / f"{i}.nii.gz", (30, 36, 10))
    save(tmp_path / "large.nii.gz", (50, 36, 10))
    return tmp_path


@pytest.fixture
def heads(tmp_path):
    """Ten volumes of 64 x 80 x 64 voxels of 3 mm."""
    rng = np.random.default_rng(0)
    for i in range(10):
        volume = nib.Nifti1Image(rng.integers(0, 100, (64, 80, 64), np.uint8), np.diag([3.0, 3.0, 3.0, 1.0]))
        nib.save(volume, tmp_path / f"{i}.nii")
    return tmp_path


@pytest.fixture
def fast(machine):
    """A machine on which time is no limit."""
    machine.pixels_per_second = 1e9
    return machine


@pytest.mark.parametrize(
    ("sizes", "spacings", "coarsening", "spacing_mm", "image_size"),
    [
        ([[35, 51, 36]], [[1, 1, 1]], 1, [1, 1, 1], [40, 56, 40]),
        ([[280, 320, 22]], [[0.6875, 0.6875, 6.5]], 1, [0.688, 0.688, 6.5], [280, 320, 22]),
        ([[280, 320, 22]], [[0.6875, 0.6875, 6.5]], 4, [2.75, 2.75, 6.5], [72, 80, 24]),
        ([[256, 22, 256]], [[1, 6, 1]], 8, [8, 8, 8], [32, 24, 32]),
        ([[100, 100, 100]] * 19 + [[200, 100, 100]], [[1, 1, 1.2]] * 20, 1, [1, 1, 1], [112, 104, 120]),
    ],
)
def test_grids_of_volumes(sizes, spacings, coarsening, spacing_mm, image_size):
    assert grid_3d(survey(sizes, spacings), coarsening, 4) == (spacing_mm, image_size)


def test_grids_of_images():
    images = survey([[224, 200]] * 3, [[1, 1]] * 3)
    assert [grid_2d(images, c, 4) for c in (1, 2, 8, 100)] == [[224, 224], [112, 112], [32, 32], [16, 16]]
    assert grid_2d(survey([[3000, 2000]], [[1, 1]]), 1, 4) == [256, 256]


def test_the_finest_grid_of_volumes(volumes, fast):
    result = plan(volumes, device="cpu", overrides=SMALL)
    settings = result.settings
    assert settings["spacing_mm"] == [1, 1, 5]
    assert settings["image_size"] == [42, 36, 10]  # 41 mm is the 95th percentile, two levels
    assert (settings["batch_size"], settings["use_checkpoint"]) == (8, False)
    assert result.num_cropped == 1
    assert result.survey.outliers == []
    assert result.proposal.memory.total < result.budget == int(3.2 * 2**30)  # 80 % of what is free


@pytest.mark.parametrize(
    ("gib", "image_size", "use_checkpoint", "batch_size", "val_batch_size"),
    [  # 42 x 36 x 10 voxels: 14.8 GiB an image, 1.48 recomputed, at least .74
        (119, [42, 36, 10], False, 8, None),
        (60, [42, 36, 10], False, 4, 4),
        (58, [42, 36, 10], True, 8, None),
        (5, [42, 36, 10], True, 2, 2),
        (1.4, [34, 30, 10], True, 1, 1),
    ],
)
def test_less_memory_gives_recomputing_then_smaller_batches_then_coarser_grids(
    volumes, fast, gib, image_size, use_checkpoint, batch_size, val_batch_size
):
    fast.kib_per_voxel, fast.free_gib = 1024, 999
    result = plan(volumes, device="cpu", memory_gib=gib, overrides=FINE)
    settings = result.settings
    assert result.proposal.memory.gib <= gib
    assert settings["image_size"] == image_size
    assert settings["use_checkpoint"] is use_checkpoint
    assert settings["batch_size"] == batch_size
    assert settings.get("val_batch_size") == val_batch_size
    assert settings["batch_size"] * settings.get("accumulation_steps", 1) >= 8


def test_what_is_settled_stays(volumes, fast):
    settled = {**SMALL, "spacing_mm": [3, 3, 5], "image_size": [16, 16, 8], "batch_size": 3, "max_epochs": 7}
    assert settled.items() <= plan(volumes, device="cpu", overrides=settled).settings.items()
    wrong = {**settled, "image_size": [15, 16, 8], "strides": None}
    with pytest.raises(ConfigError, match=r"image_size is \[15, 16, 8\]"):
        plan(volumes, device="cpu", overrides=wrong)


def test_what_cannot_be_planned_is_one_line(volumes, machine):
    large = {**SMALL, "image_size": [16, 16, 8], "spacing_mm": [9, 9, 9]}
    with pytest.raises(MachineError, match="^memory_gib: nothing fits into 0.00 GiB; .* in latent space") as caught:
        plan(volumes, device="cpu", memory_gib=1e-4, overrides=large)
    assert "\n" not in str(caught.value)
    for options, message in (
        ({"overrides": {"batch_sise": 3}}, "did you mean 'batch_size'"),
        ({"bundle": "autoencoder_kl_3d"}, "channel_mult: the network has no such key .*diffusion autoencoder"),
        ({"overlays": [OVERLAY]}, "^first_stage_bundle: is required; give a trained"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(volumes, device="cpu", **options)
    machine.free_gib = None
    with pytest.raises(MachineError, match="^memory_gib: the free memory of cpu is unknown.*; give a value"):
        plan(volumes, device="cpu")


@pytest.mark.slow
def test_more_minutes_and_faster_machines_give_finer_grids_that_end_in_time(heads, machine):
    voxels = []
    for machine.pixels_per_second, minutes in ((2e4, 10), (1e5, 60), (1e6, 60)):
        machine.measured.clear()
        result = plan(heads, minutes=minutes, device="cpu")
        assert 0.5 * 60 * minutes < result.timetable.total_s <= 60 * minutes
        assert result.timetable.num_images >= result.needed_images
        assert result.settings["image_size"] in machine.measured
        assert len(machine.measured) <= 5
        voxels.append(np.prod(result.settings["image_size"]))
    assert voxels[0] < voxels[1] < voxels[2]
    machine.pixels_per_second = 1e9
    little, much = (plan(heads, minutes=600, device="cpu", memory_gib=gib) for gib in (0.2, 4))
    assert little.proposal.memory.gib <= 0.2  # memory still is a bound
    assert np.prod(little.settings["image_size"]) < np.prod(much.settings["image_size"])


def test_the_coarsest_grid_with_a_warning_if_the_time_is_too_short(heads, machine, run):
    machine.pixels_per_second = 1000
    code, printed, _ = run("plan", heads, "--minutes", 2, "--device", "cpu")
    assert code == 0
    assert "image_size: [8, 12, 8]" in printed
    assert "z_sem may hardly be used after so few images; about 1500 are needed: with so few scans" in printed
    machine.pixels_per_second = 10
    _, printed, _ = run("plan", heads, "--minutes", 2, "--device", "cpu")
    assert "this takes longer than the given time, so max_minutes will end it early" in printed


CONFIG = {"num_pictures": 4, "calibration_cases": 64, "ema_decay": 0.999, "probe_interval": 5, "picture_steps": 20}


@pytest.mark.parametrize(("num_train", "seconds_per_step"), [(3, 0.5), (100, 0.01), (5000, 0.5)])
def test_a_timetable_fills_the_budget(num_train, seconds_per_step):
    work = Work(num_train, max(1, num_train // 10), CONFIG, {})
    table = work.timetable(Speed(seconds_per_step, min(8, num_train), 0.01), 600)
    settings = table.settings
    assert 0.7 * 600 < table.total_s <= 600
    assert 60 * settings["max_minutes"] <= 600 - START_S
    assert table.num_steps == settings["max_epochs"] * max(1, num_train // 8)
    assert 1 <= settings["max_epochs"] / settings["val_interval"] <= 8
    assert settings["probe_interval"] == settings["val_interval"]
    assert 1 / (1 - settings["ema_decay"]) <= max(10, table.num_steps / 10)


def test_the_command_shows_and_its_train_line_is_accepted(run, volumes, fast):
    small = [f"{key}={str(value).replace(' ', '')}" for key, value in SMALL.items()]
    code, printed, error = run("plan", volumes, "--device", "cpu", "--overrides", *small)
    assert code == 0, error
    for words in (
        "10 scans can be used, 0 cannot",
        "predicted time: 0:0",
        "1 scan will be cropped to this grid",
        "predicted memory: 0.",
    ):
        assert words in printed
    *_, init, train = printed.splitlines()
    assert init == "monai-diffae init my_bundle --bundle diffae_3d"
    _, bound = parse(build_app(), shlex.split(train)[1:])
    assert bound.args[:2] == (Path("my_bundle"), volumes)
    assert bound.arguments["training"].overrides == plan(volumes, device="cpu", overrides=SMALL).settings


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A first stage with random weights, as if it were trained: halves volumes once, to 4 channels."""
    folder = tmp_path_factory.mktemp("stage") / "my_first_stage"
    config = json.loads((ROOT / "bundles" / "autoencoder_kl_3d" / "configs" / "train.json").read_text())
    config["network_def"]["autoencoder"] |= {
        "channels": [16, 16], "attention_levels": [False, False], "norm_num_groups": 4
    }  # fmt: skip
    parser = ConfigParser(config)
    network = parser.get_parsed_content("network_def")
    network.latent_mean.zero_()
    network.latent_std.fill_(1)
    description = describe(parser, ("network_def",))
    write_model(folder / "models" / "model.safetensors", "first_stage", network.state_dict(), description)
    return folder


@pytest.fixture
def scans(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        nib.save(nib.Nifti1Image(rng.random((30, 36, 22), np.float32), np.eye(4)), tmp_path / f"{i}.nii")
    return tmp_path


def settled(first_stage, **changes):
    return {**SMALL, "first_stage_bundle": str(first_stage), **changes}


def test_the_grid_is_one_that_both_networks_divide_and_the_line_has_the_overlay(first_stage, scans, fast):
    result = plan(scans, minutes=60, device="cpu", overlays=[OVERLAY], overrides=settled(first_stage))
    settings = result.settings
    assert (settings["spacing_mm"], settings["image_size"]) == ([1, 1, 1], [32, 36, 24])  # by 2 and once more by 2
    assert settings["batch_size"] == 2  # the overlay's
    _, bound = parse(build_app(), shlex.split(result.commands[-1])[1:])
    training = bound.arguments["training"]
    assert tuple(training.overlays) == (OVERLAY,)
    assert training.overrides["first_stage_bundle"] == str(first_stage)
    with pytest.raises(ConfigError, match=r"image_size is \[32, 36, 21\]; the network needs multiples of .*, such as"):
        plan(scans, device="cpu", overlays=[OVERLAY], overrides=settled(first_stage, image_size=[32, 36, 21]))


def test_the_first_stage_takes_time_too(first_stage, scans, machine, monkeypatch):
    machine.measure_speed = partial(measure_speed, min_seconds=0)
    calls, encode = [], FirstStage.encode
    monkeypatch.setattr(FirstStage, "encode", lambda self, images: calls.append(images.shape) or encode(self, images))
    overrides = settled(first_stage, precision="fp32", image_size=[8, 8, 8])
    result = plan(scans, device="cpu", overlays=[OVERLAY], overrides=overrides)
    assert set(calls) == {(2, 1, 8, 8, 8)}
    assert result.work.num_train == 4


def test_the_speed_is_that_of_the_bundles_own_trainer_also_if_the_encoder_sees_another_image(tmp_path):
    config = json.loads((ROOT / "bundles" / "diffae_2d" / "configs" / "train.json").read_text())
    config |= {
        "image_keys": ["image", "encoder_image"], "encoder_key": "encoder_image", "image_size": [16, 16],
        "accumulation_steps": 2, "base_channels": 4, "channel_mult": [1, 2],
    }  # fmt: skip
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24), np.uint8)).save(tmp_path / "a.png")
    items = [{"image": str(tmp_path / "a.png"), "encoder_image": str(tmp_path / "a.png"), "id": "a"}]
    speed = measure_speed(config, "cpu", items, batch_size=3, min_seconds=0)
    assert speed.batch_size == 3
    assert speed.seconds_per_step > 0
    assert speed.seconds_per_scan > 0
    assert speed.images_per_second == pytest.approx(3 / speed.seconds_per_step)
    assert config["train"]["trainer"]["train_handlers"] != "$[@ema]"  # what was given is as it was
