"""``plan --check`` refuses exactly what training refuses."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffae.apps.training.plan import plan
from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import init_bundle

RANDOM = np.random.default_rng(0)
SMALL = {"base_channels": 4, "z_channels": 8, "test_fraction": 0.0}


def picture(path: Path, *shape: int, mode: str | None = None) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, shape, np.uint8), mode)
    image.save(path)


def volume(path: Path, array: np.ndarray, spacing_mm: float = 1.0) -> None:
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([spacing_mm] * 3 + [1.0])), path)


def odd_pictures(folder: Path) -> None:
    for i in range(6):
        picture(folder / f"good{i}.png", 20 + i, 30)
    picture(folder / "colour.png", 20, 30, 3)
    picture(folder / "colour.jpg", 20, 30, 3)
    picture(folder / "transparent.png", 20, 30, 4)
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(folder / "constant.png")
    Image.fromarray(RANDOM.integers(0, 60_000, (20, 20)).astype(np.uint16)).save(folder / "deep.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "good0.png").read_bytes()[:-200])
    (folder / "text.jpg").write_text("no picture")
    volume(folder / "slice.nii.gz", RANDOM.normal(size=(20, 24, 1)))
    volume(folder / "volume.nii.gz", RANDOM.normal(size=(20, 24, 5)))
    values = RANDOM.normal(size=(20, 24, 5))
    values[..., 2] = 0
    volume(folder / "empty_slice.nii.gz", values)
    values[3, 3, 3] = np.nan
    volume(folder / "nan.nii.gz", values)


def odd_volumes(folder: Path) -> None:
    for i in range(5):
        volume(folder / f"good{i}.nii.gz", RANDOM.normal(size=(16, 18, 16)))
    volume(folder / "coarse.nii.gz", RANDOM.normal(size=(8, 8, 8)), 4.0)
    volume(folder / "tiny.nii.gz", RANDOM.normal(size=(2, 2, 2)), 0.2)
    volume(folder / "slice.nii.gz", RANDOM.normal(size=(16, 18, 1)))
    volume(folder / "constant.nii.gz", np.ones((16, 18, 16)))
    volume(folder / "nan.nii.gz", np.where(np.arange(16) == 3, np.nan, RANDOM.normal(size=(16, 18, 16))))
    cut = folder / "cut.nii.gz"
    cut.write_bytes((folder / "good0.nii.gz").read_bytes()[:-100])
    picture(folder / "picture.png", 20, 20)


@pytest.mark.parametrize("colour", [None, "grey"])
@pytest.mark.parametrize(("name", "make"), [("diffae_2d", odd_pictures), ("diffae_3d", odd_volumes)])
def test_the_check_lists_what_training_leaves_out(tmp_path, tiny_settings, quick, name, make, colour):
    (tmp_path / "scans").mkdir()
    make(tmp_path / "scans")
    bundle = init_bundle(tmp_path / "bundle", name)
    planned = plan(
        tmp_path / "scans", bundle=bundle, memory_only=True, memory_gib=999, check=True, overrides=SMALL, colour=colour
    )
    tiny_settings.pop("channel_mult")
    settings = {**tiny_settings, **planned.proposal.settings, **SMALL, "batch_size": 2, "calibration_cases": 0}
    result = train(bundle, tmp_path / "scans", colour=colour, overrides=settings)
    with open(result.failures, newline="") as stream:
        left_out = {(row["case_id"], row["reason"]) for row in csv.DictReader(stream)}
    assert {(failure.case_id, failure.reason) for failure in planned.survey.failures} == left_out
    assert ("colour.png" in " ".join(reason for _, reason in left_out)) == (name == "diffae_2d" and colour is None)
