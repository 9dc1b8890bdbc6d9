"""Training runs in which an application, such as MONAI Label, replaces the data by lists of images."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_diffae.bundle import load_bundle
from monai_diffae.data import split_cohort
from monai_diffae.errors import one_line

Items = list[dict[str, str]]


@pytest.fixture
def bundle(tiny_bundle: Any, tmp_path: Path) -> Path:
    """A trained bundle: by default its train.json has other sizes than the model, and no dataset_dir."""
    return shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))


@pytest.fixture
def images(tiny_bundle: Any) -> list[str]:
    folder = tiny_bundle.cohort.parent
    return [str(folder / name) for name in pd.read_csv(tiny_bundle.cohort)["image"]]


def items(paths: list[str]) -> Items:
    return [{"image": path, "label": f"{path}.label.nii.gz"} for path in paths]


def run(bundle: Path, train: Any, val: Any, *, pretrained: bool = True, **values: Any) -> Any:
    """What ``BundleTrainTask`` of MONAI Label 0.8.5 does."""
    file = bundle / "configs" / "train.json"
    handlers = json.loads(file.read_text())["train"]["handlers"]
    load = {"load_path": str(bundle / "models" / "model.pt"), "load_dict": {"model": "$@network"}, "strict": False}
    if pretrained:
        handlers.insert(0, {"_target_": "CheckpointLoader", **load})
    overrides = {
        "bundle_root": str(bundle), "train#trainer#max_epochs": 1, "train#dataset#data": train, "device": "cpu",
        "train#handlers": handlers, "validate#dataset#data": val, "mlflow": False, "check_memory": False, **values,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(str(file), logging_file=False, workflow_type="train")
    workflow.parser.update(overrides)
    workflow.initialize()
    workflow.run()
    return workflow


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        call()
    return one_line(caught.value)


def content(bundle: Path) -> dict[str, bytes]:
    return {str(f.relative_to(bundle)): f.read_bytes() for f in bundle.rglob("*") if f.is_file() and f.name != ".lock"}


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_it_continues_the_trained_model_on_the_images_that_are_given(
    bundle: Path, images: list[str], tmp_path: Path
) -> None:
    models = bundle / "models"
    before, config = torch.load(models / "model.pt", weights_only=True), read(models / "config.json")
    workflow = run(bundle, items(images[:3]), items(images[3:5]))
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert len(trainer.data_loader.dataset) == 3
    assert len(workflow.parser.get_parsed_content("validate#dataset")) == 2
    assert trainer.state.iteration == 1  # the batch_size and image_size with which the bundle was trained
    after = torch.load(models / "model.pt", weights_only=True)
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 0.01
    now = read(models / "config.json")
    assert now.pop("_meta_") != config.pop("_meta_")
    assert now == {**config, "columns": {}}
    assert read(bundle / "configs" / "inference.json")["image_size"] == [16, 16]
    assert load_bundle(bundle, "cpu").image_shape == (1, 16, 16)


def test_the_fingerprint_is_that_of_the_images_given(bundle: Path, images: list[str], tmp_path: Path) -> None:
    run(bundle, items(images[:3]), items(images[3:5]))
    table = pd.DataFrame({"image": images[:5], "split": ["train"] * 3 + ["val"] * 2})
    table.to_csv(tmp_path / "same.csv", index=False)
    expected = split_cohort(tmp_path / "same.csv").fingerprint
    assert read(bundle / "models" / "config.json")["_meta_"]["data_fingerprint"] == expected


def test_more_images_are_no_other_data(bundle: Path, images: list[str]) -> None:
    run(bundle, items(images[:3]), items(images[3:5]))
    first = (bundle / "models" / "model.pt").read_bytes()
    run(bundle, items(images[:6]), items(images[6:8]))
    assert (bundle / "models" / "model.pt").read_bytes() != first


def test_no_path_of_an_image_stays_in_the_bundle(bundle: Path, images: list[str]) -> None:
    run(bundle, items(images[:3]), items(images[3:5]))
    folder = str(Path(images[0]).parent).encode()
    assert [name for name, text in content(bundle).items() if folder in text or b"given_images" in text] == []
    assert read(bundle / "models" / "training.json")["max_epochs"] == 1
    assert not any(key.startswith("train") for key in read(bundle / "models" / "training.json"))


def test_a_bundle_without_weights_is_trained_from_the_start(
    bundle: Path, images: list[str], tiny_settings: dict[str, Any]
) -> None:
    shutil.rmtree(bundle / "models")
    run(bundle, items(images[:3]), items(images[3:5]), pretrained=False, **tiny_settings)
    assert load_bundle(bundle, "cpu").image_shape == (1, 16, 16)


def test_values_of_the_run_take_precedence_over_remembered_ones(bundle: Path, images: list[str]) -> None:
    workflow = run(bundle, items(images[:4]), items(images[4:6]), batch_size=2, learning_rate=1e-5)
    assert workflow.parser.get_parsed_content("train#trainer").state.iteration == 2
    assert read(bundle / "models" / "training.json")["learning_rate"] == 1e-5


def test_volumes_are_cut_into_slices_and_bad_scans_are_listed(
    bundle: Path, tmp_path: Path, small_volumes: list[str]
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    workflow = run(bundle, items([*small_volumes[:2], str(broken)]), items(small_volumes[2:]))
    assert len(workflow.parser.get_parsed_content("train#dataset")) > 4
    assert "broken.nii.gz" in (bundle / "failures.csv").read_text()


@pytest.fixture
def small_volumes(tmp_path: Path) -> list[str]:
    from monai_diffae.data.samples import make_virtual_cohort

    cohort = make_virtual_cohort(tmp_path / "volumes", num_patients=3, size=16, spatial_dims=3)
    return [str(cohort.parent / name) for name in pd.read_csv(cohort)["image"]]


def test_a_patient_in_both_lists_is_not_validated_on(
    bundle: Path, images: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / name / f"{name}_scan-{i}.nii.gz" for name in ("sub-1", "sub-2") for i in range(3)]
    for source, path in zip(images, paths, strict=False):
        path.parent.mkdir(exist_ok=True)
        shutil.copy(source, path)
    names = [str(path) for path in paths]
    with caplog.at_level(logging.WARNING, "monai_diffae"):
        workflow = run(bundle, items(names[:2]), items(names[2:]))
    assert "1 of 4 images are not used for validation" in caplog.text
    assert len(workflow.parser.get_parsed_content("validate#dataset")) == 3
    assert "all of its patients are also trained on" in refused(
        lambda: run(bundle, items(names[:2]), items(names[2:3]))
    )


def test_what_is_refused_changes_nothing(bundle: Path, images: list[str], tmp_path: Path) -> None:
    before = content(bundle)
    train, val = items(images[:3]), items(images[3:5])
    assert "train#dataset#data: there is no image; in MONAI Label, label more" in refused(lambda: run(bundle, [], val))
    assert "validate#dataset#data: there is no image" in refused(lambda: run(bundle, train, []))
    from_cohort = "$@cohort.items('val')"
    assert "validate#dataset#data: must be a list" in refused(lambda: run(bundle, train, from_cohort))
    assert 'has no "image" path' in refused(lambda: run(bundle, [{"label": "a"}], val))
    assert "have the same file" in refused(lambda: run(bundle, train, train))
    changed = refused(lambda: run(bundle, train, val, z_channels=4))
    assert "was trained with other values of z_channels" in changed
    other = {"_target_": "CheckpointLoader", "load_path": "models/checkpoint.pt", "load_dict": {"model": "$@network"}}
    handlers = [other, *read(bundle / "configs" / "train.json")["train"]["handlers"]]
    loader = refused(lambda: run(bundle, train, val, **{"train#handlers": handlers}))
    assert "checkpoint.pt: training can start only from models/model.pt" in loader
    assert content(bundle) == before


def test_a_failing_training_keeps_the_old_model(bundle: Path, images: list[str]) -> None:
    before = content(bundle)
    error = refused(lambda: run(bundle, items(images[:3]), items(images[3:5]), learning_rate=1e39))
    assert "not finite" in error
    after = content(bundle)
    assert {name: after[name] for name in before if name.startswith("models/")} == {
        name: text for name, text in before.items() if name.startswith("models/")
    }
