"""Training runs in which an application, such as MONAI Label, replaces the data by lists of images."""

import json
import shutil
import warnings

import pandas as pd
import pytest
from complaints import complaint
from monai.bundle import ConfigWorkflow
from tiny_bundles import contents, weights

from monai_diffae.bundle.model_file import read_description
from monai_diffae.data import make_virtual_cohort, split_cohort
from monai_diffae.engines.trainer import TrainingEvents


@pytest.fixture
def images(tiny_bundle):
    folder = tiny_bundle.cohort.parent
    return [str(folder / name) for name in pd.read_csv(tiny_bundle.cohort)["image"]]


def items(paths):
    return [{"image": path, "label": f"{path}.label.nii.gz"} for path in paths]


def prepare(bundle, train, val, weights="model.pt", **values):
    """What ``BundleTrainTask`` of MONAI Label 0.8.5 does before it runs the workflow."""
    handlers = read(bundle)["train"]["handlers"]
    load = {"load_path": str(bundle / "models" / weights), "load_dict": {"model": "$@network"}, "strict": False}
    handlers.insert(0, {"_target_": "CheckpointLoader", **load})
    overrides = {
        "bundle_root": str(bundle), "train#trainer#max_epochs": 1, "train#dataset#data": train, "device": "cpu",
        "train#handlers": handlers, "validate#dataset#data": val, "mlflow": False, "check_memory": False, **values,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(str(bundle / "configs" / "train.json"), logging_file=False, workflow_type="train")
    workflow.parser.update(overrides)
    workflow.initialize()
    return workflow


def lengths(workflow):
    return [len(workflow.parser.get_parsed_content(id)) for id in ("train#dataset", "validate#dataset")]


def read(bundle):
    return json.loads((bundle / "configs" / "train.json").read_text())


def test_it_continues_the_trained_model_on_the_images_that_are_given(bundle, images, tmp_path):
    before, model = weights(bundle), bundle / "models" / "model.safetensors"
    described, config = read_description(model), read(bundle)
    workflow = prepare(bundle, items(images[:3]), items(images[3:5]), learning_rate=1e-5)
    assert lengths(workflow) == [3, 2]
    workflow.run()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert trainer.state.iteration == 1  # the batch_size and image_size with which the bundle was trained
    after = weights(bundle)
    assert 0 < max(float((after[name] - before[name]).abs().max()) for name in before) < 0.01
    table = pd.DataFrame({"image": images[:5], "split": ["train"] * 3 + ["val"] * 2})
    table.to_csv(tmp_path / "same.csv", index=False)
    now = read_description(model)
    counts = {"train": 3, "val": 2, "test": 0, "scans": 5}
    assert now["data"] == {"fingerprint": split_cohort(tmp_path / "same.csv").fingerprint, **counts}
    changed = {key for key in described.keys() | now.keys() if described.get(key) != now.get(key)}
    assert changed <= {"data", "figures", "recipe", "versions"}
    assert now["recipe"] == {**described["recipe"], "learning_rate": 1e-5}
    # values of the run are written into its configuration, but no image
    assert read(bundle) == {**config, "learning_rate": 1e-5, "mlflow": False}
    folder = images[0].rpartition("/")[0].encode()
    assert [name for name, text in contents(bundle).items() if folder in text or b"given_images" in text] == []


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
    assert "validate#dataset#data: there is no image" in complaint(prepare, bundle, train, "$@cohort.items('val')")
    assert 'has no "image" path' in complaint(prepare, bundle, [{"label": "a"}], val)
    assert "have the same file" in complaint(prepare, bundle, train, train)
    assert "z_channels" in complaint(prepare, bundle, train, val, z_channels=4)
    assert "epoch9.pt: training can begin only with model.pt" in complaint(prepare, bundle, train, val, "epoch9.pt")
    assert contents(bundle) == before
