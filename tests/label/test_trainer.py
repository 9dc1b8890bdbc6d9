"""Training on the server: on all images, published in one step; what fails changes nothing. The served bundle."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from filelock import FileLock
from label_scans import fill, some
from tiny_bundles import rewrite, weights

from monai_diffae import label_app
from monai_diffae.bundle import checksum
from monai_diffae.errors import ConfigError, DiffAEError
from monai_diffae.label.datastore import FolderDatastore
from monai_diffae.label.label_app import AppFolder
from monai_diffae.label.tasks import ServedModel
from monai_diffae.label.trainer import DiffAETrainer, training_options

QUICK = {"max_epochs": 1, "mlflow": False}
USUAL = {
    "name": "train_01", "pretrained": True, "device": "cuda", "max_epochs": 1, "early_stop_patience": -1,
    "val_split": 0.7, "train_batch_size": 2, "val_batch_size": 1, "multi_gpu": True, "gpus": "all",
    "dataset": "SmartCacheDataset", "dataloader": "ThreadDataLoader", "tracking": "None", "tracking_uri": "",
    "tracking_experiment_name": "", "client_id": "slicer", "model": "diffae",
}  # fmt: skip
"""What clients send to MONAI Label's own trainers (0.8.5)."""


def train(server, **params):
    return server.client.post("/train/diffae?run_sync=true", json={**QUICK, **params})


def largest_change(before, after):
    return max(float((after[name] - before[name]).abs().max()) for name in before if before[name].is_floating_point())


def state(server):
    """All that a training may change: the model's files, and what the server answers."""
    models = server.app.folder.bundle / "models"
    files = {path.name: path.read_bytes() for path in models.iterdir() if path.is_file()}
    return files, server.infer("diffae_encode", "hippocampus_001").json()["z_sem"]


def test_the_new_model_is_served_and_broken_images_are_left_out(serve, bundle_3d, volumes, tmp_path, caplog):
    studies = fill(tmp_path / "studies", some(volumes, 4))
    (studies.folder / "empty.nii.gz").write_bytes(b"")
    server = serve(bundle_3d, studies)
    folder = server.app.folder
    folder.training.mkdir()
    (_, before), untouched, old = state(server), checksum(bundle_3d), weights(bundle_3d)
    with FileLock(folder.training / ".lock"):  # of a training in another process
        response = train(server)
    assert (response.status_code, response.json()["detail"][:28]) == (409, "train: a training is running")
    with caplog.at_level(logging.INFO, "monai_diffae"):
        result = train(server, **USUAL).json()
    assert "are ignored: dataloader, dataset, device, gpus, multi_gpu, name, pretrained, tracking_uri" in caplog.text
    assert all(
        line in caplog.messages
        for line in ("6 scans of unknown patients: 6 images", "train: 2 images", "val: 4 images")
    )
    assert (result["images"], result["failed"]) == (6, 1)
    assert "held-out scans, the lowest possible p-value is" in caplog.text
    answer = server.infer("diffae_encode", "hippocampus_001").json()
    assert answer["model"] == result["model"] == checksum(folder.bundle)
    assert answer["z_sem"] != before
    assert checksum(bundle_3d) == untouched  # the app trains its own copy
    assert 0 < largest_change(old, weights(folder.bundle)) < 0.01  # it began with the weights of the bundle
    stats = server.client.get("/info/").json()["train_stats"]["diffae"]
    assert (stats["epoch"], stats["total_epochs"], stats["images"]) == (1, 1, 6)
    assert stats["total_time"] > 0
    # strategies and anomalies need not wait for a scoring
    assert server.client.post("/activelearning/diffae_diversity").json()["selection"]["scored"] == 5
    assert server.score()["new"] == 0
    assert server.infer("diffae_anomaly", "hippocampus_001").status_code == 200


def test_a_training_that_is_refused_or_fails_changes_nothing(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    before = state(server)
    for params, message in (
        ({"max_epochs": 0}, "max_epochs: 0 is below 1"),
        ({"val_split": 0}, "val_split: 0 is not above 0"),
        ({"pretrained": False}, "pretrained: a training continues with the weights that are served; omit it"),
        ({"dataset_dir": "/etc"}, "params: 'dataset_dir' is unknown"),
        ({"diffae": {"output_dir": "/etc"}}, "params: 'output_dir' is unknown"),
    ):
        for route in ("/train/diffae", "/train/"):  # at once, not in a job that fails later; OHIF uses the second one
            response = server.client.post(route, json={**QUICK, **params})
            assert (response.status_code, response.json()["detail"][: len(message)]) == (400, message)
    assert server.client.post("/train/other", json=QUICK).status_code == 404
    assert server.client.get("/train/").status_code == 404  # no job was started
    response = train(server, learning_rate=1e30)
    assert (response.status_code, response.json()["detail"][:27]) == (400, "train: the new model has di"), response.text
    assert state(server) == before
    assert not (server.app.folder.training / "run" / "bundle" / "models").exists()
    # as if it had been killed: a viewer's bar does not wait for it
    assert server.client.get("/info/").json()["train_stats"]["diffae"]["total_time"] == "stopped"


def test_options_have_the_names_of_monai_labels_own_trainers_too():
    options = {"val_split": 0.5, "train_batch_size": 2, "tracking": "None", "early_stop_patience": -1}
    named = training_options(**options, tracking_experiment_name="mine", tracking_run_name="")
    assert named == {
        "max_epochs": 10, "seed": 0, "mlflow": False, "val_fraction": 0.5, "batch_size": 2, "experiment_name": "mine",
        "early_stop_patience": None,
    }  # fmt: skip


def test_without_usable_images_or_a_bundle_of_its_own_nothing_is_trained(serve, bundle_3d, studies_2d, tmp_path):
    server = serve(bundle_3d, studies_2d)
    before = checksum(server.app.folder.bundle)
    response = train(server)
    assert (response.status_code, checksum(server.app.folder.bundle)) == (404, before), response.text
    response = train(serve(bundle_3d, fill(tmp_path / "empty", {})))
    assert (response.status_code, response.json()["detail"][:23]) == (404, "train: there is no imag")
    refers = AppFolder(label_app(tmp_path / "refers", bundle=bundle_3d, refer=True).folder)
    trainer = DiffAETrainer(ServedModel(bundle_3d, "cpu"), refers)
    with pytest.raises(ConfigError, match="uses a bundle outside its folder"):
        trainer({"model": "diffae", **QUICK}, FolderDatastore(str(tmp_path / "empty")))


def test_a_bundle_is_loaded_once_and_again_when_its_weights_change(bundle):
    served = ServedModel(bundle, "cpu")
    with served.in_use() as before:
        pass
    with served.in_use() as second:
        assert second is before
    rewrite(bundle, lambda state: {**state, "encoder.head.4.bias": state["encoder.head.4.bias"] + 1})
    with served.in_use() as after:
        assert after.sha256 != before.sha256
        assert largest_change(before.network.state_dict(), after.network.state_dict()) == 1
    model = bundle / "models" / "model.safetensors"
    model.rename(bundle / "away")
    with pytest.raises(ConfigError, match=r"no models/model\.safetensors"), served.in_use():
        pass
    (bundle / "away").rename(model)
    with served.in_use() as trained:
        assert trained.sha256 == after.sha256


def test_bundles_that_cannot_be_served_are_refused(bundle):
    rewrite(bundle, image_keys=["image", "t2"])
    with pytest.raises(ConfigError, match="MONAI Label has one image per id"):
        ServedModel(bundle, "cpu")
    rewrite(bundle, lambda _: {"layer.weight": torch.ones(2, 2)})
    with pytest.raises(DiffAEError, match="weights do not fit"):
        ServedModel(bundle, "cpu")


def test_one_request_at_a_time_uses_it(bundle):
    served = ServedModel(bundle, "cpu")
    inside, most = [], []

    def use(_):
        with served.in_use():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(use, range(5)))
    assert most == [1] * 5
