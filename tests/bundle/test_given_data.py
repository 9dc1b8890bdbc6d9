"""Training runs in which an application, such as MONAI Label, replaces the data by lists of images."""

import json
import shutil
import warnings

import pandas as pd
import pytest
from complaints import complaint
from monai.bundle import ConfigWorkflow
from tiny_bundles import contents, weights

from monai_diffae.bundle import load_bundle
from monai_diffae.data import split_cohort
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.engines.trainer import TrainingEvents


@pytest.fixture
def images(tiny_bundle):
    folder = tiny_bundle.cohort.parent
    return [str(folder / name) for name in pd.read_csv(tiny_bundle.cohort)["image"]]


def items(paths):
    return [{"image": path, "label": f"{path}.label.nii.gz"} for path in paths]


def prepare(bundle, train, val, *, pretrained=True, **values):
    """What ``BundleTrainTask`` of MONAI Label 0.8.5 does before it runs the workflow."""
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
    workflow.parser.get_parsed_content("training#1")  # checks with which weights it begins
    return workflow


def lengths(workflow):
    return [len(workflow.parser.get_parsed_content(id)) for id in ("train#dataset", "validate#dataset")]


def read(file):
    return json.loads(file.read_text())


def test_it_continues_the_trained_model_on_the_images_that_are_given(bundle, images, tmp_path):
    models = bundle / "models"
    before, config = weights(bundle), read(models / "config.json")
    workflow = prepare(bundle, items(images[:3]), items(images[3:5]), learning_rate=1e-5)
    assert lengths(workflow) == [3, 2]
    workflow.run()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert trainer.state.iteration == 1  # the batch_size and image_size with which the bundle was trained
    after = weights(bundle)
    assert 0 < max(float((after[name] - before[name]).abs().max()) for name in before) < 0.01
    now = read(models / "config.json")
    table = pd.DataFrame({"image": images[:5], "split": ["train"] * 3 + ["val"] * 2})
    table.to_csv(tmp_path / "same.csv", index=False)
    assert now["_meta_"]["data_fingerprint"] == split_cohort(tmp_path / "same.csv").fingerprint
    assert {**now, "_meta_": config["_meta_"]} == {**config, "columns": {}}
    assert read(bundle / "configs" / "inference.json")["image_size"] == [16, 16]
    assert load_bundle(bundle, "cpu").image_shape == (1, 16, 16)
    # values of the run are remembered, and no path of an image stays
    settings = read(models / "training.json")
    assert (settings["max_epochs"], settings["learning_rate"]) == (1, 1e-5)
    folder = images[0].rpartition("/")[0].encode()
    assert [name for name, text in contents(bundle).items() if folder in text or b"given_images" in text] == []


@pytest.mark.slow
def test_a_bundle_without_weights_is_trained_from_the_start(bundle, images, tiny_settings):
    shutil.rmtree(bundle / "models")
    prepare(bundle, items(images[:3]), items(images[3:5]), pretrained=False, **tiny_settings).run()
    assert load_bundle(bundle, "cpu").image_shape == (1, 16, 16)


def test_volumes_are_cut_into_slices_and_bad_scans_are_listed(bundle, tmp_path):
    cohort = make_virtual_cohort(tmp_path / "volumes", num_patients=3, size=16, spatial_dims=3)
    volumes = [str(cohort.parent / name) for name in pd.read_csv(cohort)["image"]]
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    workflow = prepare(bundle, items([*volumes[:2], str(broken)]), items(volumes[2:]))
    assert lengths(workflow)[0] > 4
    workflow.parser.get_parsed_content("train#trainer").fire_event(TrainingEvents.BEFORE_RUN)
    assert "broken.nii.gz" in (bundle / "failures.csv").read_text()


def test_a_patient_in_both_lists_is_not_validated_on(bundle, images, tmp_path, caplog):
    paths = [tmp_path / name / f"{name}_scan-{i}.nii.gz" for name in ("sub-1", "sub-2") for i in range(3)]
    for source, path in zip(images, paths, strict=False):
        path.parent.mkdir(exist_ok=True)
        shutil.copy(source, path)
    names = [str(path) for path in paths]
    assert lengths(prepare(bundle, items(names[:2]), items(names[2:])))[1] == 3
    assert "1 of 4 images are not used for validation" in caplog.text
    assert "all of its patients are also trained on" in complaint(prepare, bundle, items(names[:2]), items(names[2:3]))


def test_what_is_refused_changes_nothing(bundle, images):
    before = contents(bundle)
    train, val = items(images[:3]), items(images[3:5])
    assert "train#dataset#data: there is no image; in MONAI Label, label more" in complaint(prepare, bundle, [], val)
    assert "validate#dataset#data: must be a list" in complaint(prepare, bundle, train, "$@cohort.items('val')")
    assert 'has no "image" path' in complaint(prepare, bundle, [{"label": "a"}], val)
    assert "have the same file" in complaint(prepare, bundle, train, train)
    assert "was trained with other values of z_channels" in complaint(prepare, bundle, train, val, z_channels=4)
    other = {"_target_": "CheckpointLoader", "load_path": "models/checkpoint.pt", "load_dict": {"model": "$@network"}}
    handlers = [other, *read(bundle / "configs" / "train.json")["train"]["handlers"]]
    loader = complaint(prepare, bundle, train, val, **{"train#handlers": handlers})
    assert "checkpoint.pt: training can start only from models/model.pt" in loader
    assert contents(bundle) == before
