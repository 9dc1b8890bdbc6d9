"""Each wrong input ends in one line that names the key or the file, before or while the data are read."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from monai_diffae.bundle.config import check_config
from monai_diffae.bundle.config_values import check_dimensions, check_values
from monai_diffae.errors import ConfigError, find_diffae_error, one_line

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffae_2d"


def complaint(make_workflow, overrides):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        make_workflow({"check_memory": True, **overrides}).run()
    error = find_diffae_error(caught.value)
    assert error is not None, repr(caught.value)
    assert "\n" not in str(error)
    return one_line(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"image_sise": [16, 16]}, ["image_sise", "did you mean 'image_size'"]),
        ({"train#trainer#max_epoch": 3}, ["train#trainer#max_epoch", "did you mean 'max_epochs'"]),
        ({"dataset_dir": "/nowhere/cohort.csv"}, ["cohort.csv"]),
        ({"precision": "fp8"}, ["precision", "bf16"]),
        ({"device": "banana"}, ["device", "'banana'"]),
        ({"diffusion#schedule": "linear"}, ["schedule", "linear_beta"]),
        ({"lr_schedule": "step"}, ["lr_schedule"]),
        pytest.param({"in_channels": 3}, ["channel"], marks=pytest.mark.goal(id="R9")),
        (
            {"image_size": [50, 50], "channel_mult": [1, 2, 4], "dataset_dir": "/gone"},
            ["image_size is [50, 50]; the network needs multiples of"],
        ),
        ({"agreement_weight": 0.02}, ["agreement_weight is 0.02", "add the overlay encoder_view,"]),
        (
            {"agreement_weight": 0.02, "encoder_key": "other", "batch_size": 1},
            ["agreement_weight is 0.02, but batch_size is 1", "enlarge batch_size"],
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(make_workflow, overrides, words):
    line = complaint(make_workflow, overrides)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"overwrite": "False"}, "overwrite is 'False'"),
        ({"batch_size": 0}, "batch_size is 0; it must be"),
        ({"val_interval": False}, "val_interval is False"),
        ({"max_grad_norm": -5}, "max_grad_norm is -5"),
        ({"ema_decay": 2}, "ema_decay is 2"),
        ({"agreement_weight": True}, "agreement_weight is True"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"image_size": 16}, "image_size is 16"),
        ({"percentiles": 99}, "percentiles is 99"),
    ],
)
def test_a_value_out_of_range_is_named(value, words):
    config = json.loads((BUNDLE / "configs" / "train.json").read_text())
    with pytest.raises(ConfigError) as caught:
        check_values({**config, **value})
    assert words in str(caught.value)


def volumes(folder, change=None):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        array = rng.random((16, 16, 6)).astype(np.float32)
        nib.save(nib.Nifti1Image(array if change is None else change(array), np.eye(4)), folder / f"scan{i:02d}.nii.gz")
    return folder


def with_nan(array):
    array[4, 4, :] = np.nan
    return array


def truncate(folder):
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:-900])
    return folder


@pytest.mark.goal(id="R12")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder.mkdir() or folder, ["scans"]),
        (lambda folder: volumes(folder, with_nan), ["scan0", "nan"]),
        (lambda folder: volumes(folder, lambda a: np.stack([a] * 3, -1)[..., None, :]), ["scan0", "5d"]),
        (lambda folder: truncate(volumes(folder)), ["scan0"]),
    ],
    ids=["empty", "nan", "5d", "truncated"],
)
def test_where_no_case_is_good_one_line_says_why(make_workflow, tmp_path, make, words):
    line = complaint(make_workflow, {"dataset_dir": str(make(tmp_path / "scans"))}).lower()
    assert all(word in line for word in words), line


@pytest.mark.goal(id="R12")
def test_a_patient_in_two_splits_is_refused(make_workflow, small_cohort, tmp_path):
    table = pd.read_csv(small_cohort)
    table["image"] = [str(small_cohort.parent / image) for image in table["image"]]
    table["patient"] = "p1"
    table.to_csv(tmp_path / "t.csv", index=False)
    line = complaint(make_workflow, {"dataset_dir": str(tmp_path / "t.csv")})
    assert "split" in line


def test_an_override_of_what_refers_to_a_key_makes_the_key_no_unknown_one(make_workflow):
    make_workflow({"train#trainer#max_epochs": 1, "train#dataloader#batch_size": 4, "optimizer#lr": 0.01})


@pytest.mark.goal(id="R30")
@pytest.mark.parametrize(
    "config",
    [
        {"use_checkpoint": 10**400}, {"batch_size": "x" * 400}, {"spatial_dims": 3, "image_size": [10**400]},
        {"x" * 400: 1}, {"train": {"x" * 400: 1}}, {"train": [10**400]},
    ],
    ids=["number", "text", "size", "key", "inner key", "section"],
)  # fmt: skip
def test_long_values_are_quoted_in_part(config):
    with pytest.raises(ConfigError) as caught:  # noqa: PT012
        check_config(config, known={"use_checkpoint", "batch_size", "spatial_dims", "image_size"})
        check_dimensions(config)
        check_values(config)
    assert len(str(caught.value)) <= 200
