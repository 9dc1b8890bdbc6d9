"""Plans: the grid, what fits, the command that they end with."""

import json
import shlex
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffae.apps.training import planning
from monai_diffae.apps.training.gpu_predictions import GpuPrediction
from monai_diffae.apps.training.plan import GpuName, plan
from monai_diffae.apps.training.proposals import grid_2d, grid_3d
from monai_diffae.cli import build_app, parse
from monai_diffae.data.survey import Survey
from monai_diffae.engines.gpu_speed import GPUS
from monai_diffae.engines.memory import Memory
from monai_diffae.errors import ConfigError, MachineError

ROOT = Path(__file__).parents[3]


def survey(sizes, spacings):
    return Survey([str(i) for i in range(len(sizes))], np.array(sizes), np.array(spacings, float))


@pytest.fixture
def volumes(tmp_path):
    """Nine volumes of 30 x 36 x 10 voxels of 1 x 1 x 5 mm and one that is larger."""
    for i in range(9):
        save(tmp_path / f"{i}.nii.gz", (30, 36, 10))
    save(tmp_path / "large.nii.gz", (50, 36, 10))
    return tmp_path


def save(path, shape):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([1.0, 1.0, 5.0, 1.0])), path)


SMALL = {"base_channels": 4, "channel_mult": [1, 2], "z_channels": 8}


@pytest.mark.parametrize(
    ("sizes", "spacings", "coarsening", "spacing_mm", "image_size"),
    [
        ([[35, 51, 36]], [[1, 1, 1]], 1, [1, 1, 1], [40, 56, 40]),
        ([[35, 51, 36]], [[1, 1, 1]], 2, [2, 2, 2], [24, 32, 24]),
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


def test_a_plan_of_volumes(volumes):
    result = plan(volumes, memory_gib=4, device="cpu", memory_only=True, overrides=SMALL)
    settings = result.proposal.settings
    assert settings["spacing_mm"] == [1, 1, 5]
    assert settings["image_size"] == [42, 36, 10]  # 41 mm is the 95th percentile, two levels
    assert settings["batch_size"] == 8
    assert settings["use_checkpoint"] is False
    assert result.num_cropped == 1
    assert result.survey.outliers == []
    assert result.proposal.memory.total < result.budget == 4 * 2**30


def test_a_plan_predicts_the_speed_of_gpus_that_are_not_here(volumes):
    result = plan(volumes, memory_gib=4, device="cpu", memory_only=True, overrides=SMALL, gpus=["t4", "h100"])
    slow, fast = result.gpus
    assert (slow.name, fast.name) == ("t4", "h100")
    assert slow.images_per_second < fast.images_per_second
    assert slow.fits
    assert any(line.startswith("h100: ") and "of 80 GiB" in line for line in result.lines())
    assert result.figures()["gpus"]["t4"]["images_per_second"] == round(slow.images_per_second, 1)


def test_a_gpu_with_too_little_memory():
    prediction = GpuPrediction("t4", 100.0, Memory(20 * 2**30, 0, 0, 0))
    assert prediction.line(360_000) == (
        "t4: 100 images/s, this training 1.0 h, a million images 2.8 h, 20.0 of 16 GiB: does not fit"
    )
    assert prediction.line(None) == "t4: 100 images/s, a million images 2.8 h, 20.0 of 16 GiB: does not fit"


def test_all_known_gpus_can_be_named():
    assert list(get_args(GpuName)) == list(GPUS)


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
    proposal = plan(
        volumes, memory_gib=gib, device="cpu", memory_only=True, overrides={"channel_mult": [1, 2]}
    ).proposal
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
    settings = plan(volumes, memory_gib=40, device="cpu", memory_only=True, overrides=settled).proposal.settings
    assert settled.items() <= settings.items()
    with pytest.raises(ConfigError, match=r"image_size is \[15, 16, 8\]"):
        plan(
            volumes,
            memory_gib=4,
            device="cpu",
            memory_only=True,
            overrides={**settled, "image_size": [15, 16, 8], "strides": None},
        )
    with pytest.raises(ConfigError, match="batch_sise: the bundle's train.json has no such key"):
        plan(volumes, memory_gib=4, overrides={"batch_sise": 3})


def test_what_cannot_be_planned_is_one_line(volumes, quick, monkeypatch):
    with pytest.raises(MachineError, match="^memory_gib: nothing fits into 0.01 GiB; .* in latent space") as caught:
        plan(
            volumes,
            memory_gib=0.01,
            device="cpu",
            memory_only=True,
            overrides={**SMALL, "image_size": [16, 16, 8], "spacing_mm": [9, 9, 9]},
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="memory_gib: -1 is not above 0"):
        plan(volumes, memory_gib=-1)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"^memory_gib: {wrong} cannot be used: input should be a finite number$"):
            plan(volumes, memory_gib=wrong)
    with pytest.raises(ConfigError, match=r"^memory_gib: 1e\+07 is above 1e\+06$|^memory_gib: 10000000.0 is above"):
        plan(volumes, memory_gib=1e7)
    with pytest.raises(ConfigError, match="there is no 'diffae_4d'"):
        plan(volumes, bundle="diffae_4d")
    with pytest.raises(ConfigError, match="channel_mult: the network has no such key .*diffusion autoencoder"):
        plan(volumes, bundle="autoencoder_kl_3d", memory_gib=1)
    preset = {"network_def": {"_target_": "monai_diffae.networks.preset", "name": "tiny", "spatial_dims": 3}}
    with pytest.raises(ConfigError, match="channel_mult: the network has no such key in the configuration"):
        plan(volumes, memory_gib=1, overrides=preset)
    with pytest.raises(ConfigError, match=r"^overlays: there is no file gone\.json; "):
        plan(volumes, overlays=["gone.json"], memory_gib=1)
    with pytest.raises(ConfigError, match=r"ct\.json is for|but spatial_dims is 2"):
        plan(volumes, overlays=[ROOT / "configs" / "ct.json"], memory_gib=1)
    with pytest.raises(ConfigError, match="^first_stage_bundle: is required; give a trained"):
        plan(volumes, overlays=[ROOT / "configs" / "latent_space.json"], memory_gib=1)
    monkeypatch.setattr(planning, "free_memory", lambda device: None)
    with pytest.raises(MachineError, match="^memory_gib: the free memory of cpu is unknown.*; give a value"):
        plan(volumes, device="cpu")


def test_the_command_shows_and_its_train_line_is_accepted(run, volumes, quick):
    options = ["--overrides", *(f"{key}={value}" for key, value in SMALL.items())]
    code, printed, error = run("plan", volumes, "--memory-gib", 40, "--device", "cpu", "--memory-only", *options)
    assert code == 0, error
    assert "10 scans can be used, 0 cannot" in printed
    assert "predicted time: not measured" in printed
    assert "1 scans are larger than this grid" in printed
    assert "predicted memory" in printed
    *_, init, train = printed.splitlines()
    assert init == "monai-diffae init my_bundle --bundle diffae_3d"
    _, bound = parse(build_app(), shlex.split(train)[1:])
    assert bound.args[:2] == (Path("my_bundle"), volumes)
    assert (
        bound.arguments["training"].overrides
        == plan(volumes, memory_gib=40, device="cpu", memory_only=True, overrides=SMALL).proposal.settings
    )


def test_json_of_images_and_a_bad_header(run, tmp_path, quick):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.zeros((60, 48), np.uint8)).save(folder / f"{i}.png")
    (folder / "bad.png").write_bytes(b"bad")
    options = ["--overrides", "channel_mult=[1,2]", "--memory-gib", 999, "--device", "cpu", "--memory-only", "--json"]
    code, printed, _ = run("plan", folder, *options)
    assert code == 3
    result = json.loads(printed)
    assert result["settings"]["image_size"] == [60, 60]
    assert result["cohort"]["num_scans"] == 3
    assert result["cohort"]["failures"][0]["case_id"] == "bad"
    assert 0 < result["memory"]["predicted_gib"] < result["memory"]["budget_gib"] == 999


def test_every_scan_is_read_on_demand_and_all_failures_are_counted(run, tmp_path, quick):
    rng = np.random.default_rng(0)
    for i in range(9):
        image = nib.Nifti1Image(rng.integers(0, 1000, (16, 16, 8)).astype(np.int16), np.eye(4))
        nib.save(image, tmp_path / f"{i}.nii.gz")
        if i > 2:
            file = tmp_path / f"{i}.nii.gz"
            file.write_bytes(file.read_bytes()[:-50])
    options = ["--memory-gib", 40, "--device", "cpu", "--memory-only", "--overrides"]
    options += [f"{key}={value}" for key, value in SMALL.items()]
    assert run("plan", tmp_path, *options)[0] == 0
    code, printed, error = run("plan", tmp_path, *options, "--check")
    assert code == 3
    assert error.endswith("6 of 9 scans cannot be used\n")
    assert "3 scans can be used, 6 cannot" in printed
    assert printed.count("the compressed file ends early") == 5
    assert "failed: 1 more; the result as JSON lists them all" in printed
    code, printed, _ = run("plan", tmp_path, *options, "--check", "--json")
    assert len(json.loads(printed)["cohort"]["failures"]) == 6


def test_a_check_lists_twins(tmp_path, run, quick):
    images = np.random.default_rng(0).integers(0, 255, (5, 40, 40), np.uint8)
    for name, image in zip("abcdef", [*images, images[1]], strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    options = ("plan", tmp_path, "--memory-gib", 999, "--device", "cpu", "--memory-only")
    code, printed, _ = run(*options, "--check")
    assert code == 0
    assert "1 identical, 1 of different patients): b = f" in printed
    assert "twins:" not in run(*options)[1]
