"""Plans: the grid, what fits, the command that they end with; also in the latent mode."""

import json
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from monai_diffae.apps.training import planning
from monai_diffae.apps.training import speed as measuring
from monai_diffae.apps.training.plan import plan
from monai_diffae.apps.training.proposals import grid_2d, grid_3d
from monai_diffae.apps.training.speed import Speed, fastest, measure_speed
from monai_diffae.bundle.description import describe
from monai_diffae.bundle.model_file import write_model
from monai_diffae.cli import build_app, parse
from monai_diffae.data.survey import Survey
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.networks import FirstStage

ROOT = Path(__file__).parents[3]
SMALL = {"base_channels": 4, "channel_mult": [1, 2], "z_channels": 8}


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


def planned(cohort, **options):
    """A plan by memory alone, for the CPU."""
    return plan(cohort, **{"device": "cpu", "memory_only": True, "memory_gib": 40, **options})


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


def test_a_plan_of_volumes(volumes, quick):
    result = planned(volumes, memory_gib=999, overrides=SMALL)
    settings = result.proposal.settings
    assert settings["spacing_mm"] == [1, 1, 5]
    assert settings["image_size"] == [42, 36, 10]  # 41 mm is the 95th percentile, two levels
    assert (settings["batch_size"], settings["use_checkpoint"]) == (8, False)
    assert result.num_cropped == 1
    assert result.survey.outliers == []
    assert result.proposal.memory.total < result.budget == 999 * 2**30


@pytest.mark.parametrize(
    ("gib", "image_size", "use_checkpoint", "batch_size", "val_batch_size"),
    [  # 42 x 36 x 10 voxels: 14.8 GiB an image, 1.48 recomputed, at least .74
        (119, [42, 36, 10], False, 8, None),
        (60, [42, 36, 10], False, 4, 4),
        (58, [42, 36, 10], True, 8, None),
        (5, [42, 36, 10], True, 3, 3),
        (1.4, [34, 30, 10], True, 1, 1),
    ],
)
def test_less_memory_gives_recomputing_then_smaller_batches_then_coarser_grids(
    volumes, quick, gib, image_size, use_checkpoint, batch_size, val_batch_size
):
    proposal = planned(volumes, memory_gib=gib, overrides={"channel_mult": [1, 2]}).proposal
    settings = proposal.settings
    assert proposal.memory.gib <= gib
    assert settings["image_size"] == image_size
    assert settings["use_checkpoint"] is use_checkpoint
    assert settings["batch_size"] == batch_size
    assert settings.get("val_batch_size") == val_batch_size
    assert settings["batch_size"] * settings.get("accumulation_steps", 1) >= 8


def test_on_a_gpu_networks_become_wider(volumes, quick):
    narrow = {"channel_mult": [1, 2], "precision": "bf16"}
    proposal = plan(volumes, memory_gib=1000, device="cuda", overrides=narrow).proposal
    assert proposal.settings["base_channels"] == 64


def test_what_is_settled_stays(volumes, quick):
    settled = {**SMALL, "spacing_mm": [3, 3, 5], "image_size": [16, 16, 8], "batch_size": 3}
    settings = planned(volumes, overrides=settled).proposal.settings
    assert settled.items() <= settings.items()
    wrong = {**settled, "image_size": [15, 16, 8], "strides": None}
    with pytest.raises(ConfigError, match=r"image_size is \[15, 16, 8\]"):
        planned(volumes, overrides=wrong)


def test_what_cannot_be_planned_is_one_line(volumes, quick, monkeypatch):
    large = {**SMALL, "image_size": [16, 16, 8], "spacing_mm": [9, 9, 9]}
    with pytest.raises(MachineError, match="^memory_gib: nothing fits into 0.01 GiB; .* in latent space") as caught:
        planned(volumes, memory_gib=0.01, overrides=large)
    assert "\n" not in str(caught.value)
    preset = {"network_def": {"_target_": "monai_diffae.networks.preset", "name": "tiny", "spatial_dims": 3}}
    for options, message in (
        ({"overrides": {"batch_sise": 3}}, "batch_sise: the bundle's train.json has no such key"),
        ({"bundle": "diffae_4d"}, "there is no 'diffae_4d'"),
        ({"bundle": "autoencoder_kl_3d"}, "channel_mult: the network has no such key .*diffusion autoencoder"),
        ({"overrides": preset}, "channel_mult: the network has no such key in the configuration"),
        ({"overlays": ["gone.json"]}, r"^overlays: there is no file gone\.json; "),
        ({"overlays": [ROOT / "configs" / "ct.json"]}, r"ct\.json is for|but spatial_dims is 2"),
        ({"overlays": [OVERLAY]}, "^first_stage_bundle: is required; give a trained"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(volumes, memory_gib=1, **options)
    monkeypatch.setattr(planning, "free_memory", lambda device: None)
    with pytest.raises(MachineError, match="^memory_gib: the free memory of cpu is unknown.*; give a value"):
        plan(volumes, device="cpu")


# -- the command -------------------------------------------------------------------------------------------------------

OPTIONS = ("--memory-gib", 40, "--device", "cpu", "--memory-only", "--overrides")
SMALL_OPTIONS = (*OPTIONS, *(f"{key}={str(value).replace(' ', '')}" for key, value in SMALL.items()))


def test_the_command_shows_and_its_train_line_is_accepted(run, volumes, quick):
    code, printed, error = run("plan", volumes, *SMALL_OPTIONS)
    assert code == 0, error
    for words in (
        "10 scans can be used, 0 cannot",
        "predicted time: not measured",
        "1 scan will be cropped to this grid",
    ):
        assert words in printed
    assert "predicted memory" in printed
    *_, init, train = printed.splitlines()
    assert init == "monai-diffae init my_bundle --bundle diffae_3d"
    _, bound = parse(build_app(), shlex.split(train)[1:])
    assert bound.args[:2] == (Path("my_bundle"), volumes)
    assert bound.arguments["training"].overrides == planned(volumes, overrides=SMALL).proposal.settings


def test_json_of_images_and_a_bad_header(run, tmp_path, quick):
    for i in range(3):
        Image.fromarray(np.zeros((60, 48), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes(b"bad")
    code, printed, _ = run("plan", tmp_path, *OPTIONS, "channel_mult=[1,2]", "--json")
    assert code == 3
    result = json.loads(printed)
    assert result["settings"]["image_size"] == [60, 60]
    assert result["cohort"]["num_scans"] == 3
    assert result["cohort"]["failures"][0]["case_id"] == "bad"
    assert 0 < result["memory"]["predicted_gib"] < result["memory"]["budget_gib"] == 40


def test_every_scan_is_read_on_demand_and_all_failures_and_twins_are_told(run, tmp_path, quick):
    rng = np.random.default_rng(0)
    for i in range(10):
        array = rng.integers(0, 1000, (16, 16, 8)).astype(np.int16)
        file = tmp_path / f"{i}.nii.gz"
        nib.save(nib.Nifti1Image(array, np.eye(4)), file)
        if i > 3:
            file.write_bytes(file.read_bytes()[:-50])
    (tmp_path / "3.nii.gz").write_bytes((tmp_path / "1.nii.gz").read_bytes())
    code, printed, _ = run("plan", tmp_path, *SMALL_OPTIONS)
    assert code == 0
    assert "twins:" not in printed
    code, printed, error = run("plan", tmp_path, *SMALL_OPTIONS, "--check")
    assert code == 3
    assert error.endswith("6 of 10 scans cannot be used\n")
    assert "4 scans can be used, 6 cannot" in printed
    assert printed.count("the compressed file ends early") == 5
    assert "failed: 1 more; the result as JSON lists them all" in printed
    assert "1 identical, 1 of different patients): 1 = 3" in printed


# -- the latent mode: the first stage divides the grid, and counts in memory and time ----------------------------------

OVERLAY = ROOT / "configs" / "latent_space.json"


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


def test_the_grid_is_one_that_both_networks_divide_and_the_line_has_the_overlay(first_stage, scans, quick):
    result = planned(scans, overlays=[OVERLAY], overrides=settled(first_stage))
    settings = result.proposal.settings
    assert (settings["spacing_mm"], settings["image_size"]) == ([1, 1, 1], [32, 36, 24])  # by 2 and once more by 2
    assert settings["batch_size"] == 2  # the overlay's
    _, bound = parse(build_app(), shlex.split([*result.lines()][-1].removeprefix("next: "))[1:])
    training = bound.arguments["training"]
    assert tuple(training.overlays) == (OVERLAY,)
    assert training.overrides["first_stage_bundle"] == str(first_stage)
    with pytest.raises(ConfigError, match=r"image_size is \[32, 36, 21\]; the network needs multiples of .*, such as"):
        planned(scans, overlays=[OVERLAY], overrides=settled(first_stage, image_size=[32, 36, 21]))


def test_the_first_stage_takes_time_too(first_stage, scans, quick, monkeypatch):
    monkeypatch.setattr(measuring, "_MIN_SECONDS", 0.0)
    calls, encode = [], FirstStage.encode
    monkeypatch.setattr(FirstStage, "encode", lambda self, images: calls.append(images.shape) or encode(self, images))
    overrides = settled(first_stage, precision="fp32", image_size=[8, 8, 8])
    result = planned(scans, memory_only=False, overlays=[OVERLAY], overrides=overrides)
    assert set(calls) == {(2, 1, 8, 8, 8)}
    assert result.timed.work.num_train == 4


# -- the measured speed of a training: steps of the real trainer on a few scans ----------------------------------------


def test_the_speed_is_that_of_the_bundles_own_trainer_also_for_a_second_modality(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "_MIN_SECONDS", 0.0)
    config = json.loads((ROOT / "bundles" / "diffae_2d" / "configs" / "train.json").read_text())
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
    assert speed.images_per_second == pytest.approx(3 / speed.seconds_per_step)
    assert config["train"]["trainer"]["train_handlers"] != "$[@ema]"  # what was given is as it was


def test_one_thread_is_used_where_it_is_clearly_faster(two_threads):
    for one, expected in ((0.9, None), (0.1, 1)):
        torch.set_num_threads(2)
        seconds = {1: one, 2: 1.0}
        speed, threads = fastest(lambda seconds=seconds: Speed(seconds[torch.get_num_threads()], 1))
        assert threads == expected
        assert speed.seconds_per_step == (one if expected else 1.0)
        assert torch.get_num_threads() == (expected or 2)
