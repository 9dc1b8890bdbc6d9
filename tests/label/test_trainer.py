"""Training on the server: on all images, published in one step; what fails changes nothing."""

import logging
import threading
import time

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

from filelock import FileLock
from label_scans import fill

from monai_diffae.bundle import checksum
from monai_diffae.errors import BusyError
from monai_diffae.label.trainer import DiffAETrainer

QUICK = {"max_epochs": 1, "mlflow": False}


def train(server, **params):
    return server.client.post("/train/diffae?run_sync=true", json={**QUICK, **params})


def state(server):
    """All that a training may change: the model's files, and what the server answers."""
    models = server.app.folder.bundle / "models"
    files = {path.name: path.read_bytes() for path in models.iterdir() if path.is_file()}
    return files, server.infer("diffae_encode", "hippocampus_001").json()["z_sem"]


def test_the_new_model_is_served_and_broken_images_are_left_out(serve, bundle_3d, studies_3d):
    (studies_3d.folder / "empty.nii.gz").write_bytes(b"")
    server = serve(bundle_3d, studies_3d)
    (_, before), untouched = state(server), checksum(bundle_3d)
    result = train(server).json()
    assert (result["images"], result["failed"]) == (5, 1)
    answer = server.infer("diffae_encode", "hippocampus_001").json()
    assert answer["model"] == result["model"] == checksum(server.app.folder.bundle)
    assert answer["z_sem"] != before
    assert checksum(bundle_3d) == untouched  # the app trains its own copy
    stats = server.client.get("/info/").json()["train_stats"]["diffae"]
    assert (stats["epoch"], stats["total_epochs"], stats["images"]) == (1, 1, 5)
    assert stats["total_time"] > 0


@pytest.mark.slow
def test_strategies_and_anomalies_need_not_wait_for_a_scoring(serve, bundle_3d, studies_3d, caplog):
    server = serve(bundle_3d, studies_3d)
    with caplog.at_level(logging.WARNING, "monai_diffae.label"):
        train(server)
    assert "anomaly maps of the new model are calibrated with 2 scans only" in caplog.text
    assert server.client.post("/activelearning/diffae_diversity").json()["selection"]["scored"] == 4
    assert server.client.post("/scoring/diffae_embed?run_sync=true").json()["new"] == 0
    assert server.infer("diffae_anomaly", "hippocampus_001").status_code == 200


@pytest.mark.slow
def test_it_begins_with_the_weights_of_the_bundle(serve, bundle_3d, studies_3d):
    """With a tiny learning rate the weights hardly change; a training from the start would change them all."""
    import numpy as np

    server = serve(bundle_3d, studies_3d)
    before = server.infer("diffae_encode", "hippocampus_001").json()["z_sem"]
    assert train(server, learning_rate=1e-9).status_code == 200
    after = server.infer("diffae_encode", "hippocampus_001").json()["z_sem"]
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_a_training_that_is_refused_or_fails_changes_nothing(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    before = state(server)
    for params, message in (
        ({"max_epochs": 0}, "max_epochs: 0 is below 1"),
        ({"seed": "x"}, "seed: "),
        ({"dataset_dir": "/etc"}, "params: 'dataset_dir' is unknown"),
        ({"diffae": {"output_dir": "/etc"}}, "params: 'output_dir' is unknown"),
    ):
        response = train(server, **params)
        assert (response.status_code, response.json()["detail"][: len(message)]) == (400, message)
    response = train(server, learning_rate=1e30)
    assert (response.status_code, response.json()["detail"][:27]) == (400, "train: the new model has di"), response.text
    assert state(server) == before
    assert not (server.app.folder.training / "run" / "bundle" / "models").exists()


def test_without_usable_images_nothing_is_trained(serve, bundle_3d, studies_2d, tmp_path):
    server = serve(bundle_3d, studies_2d)
    before = checksum(server.app.folder.bundle)
    response = train(server)
    assert (response.status_code, checksum(server.app.folder.bundle)) == (404, before), response.text
    server = serve(bundle_3d, fill(tmp_path / "empty", {}))
    response = train(server)
    assert (response.status_code, response.json()["detail"][:23]) == (404, "train: there is no imag")


def test_a_bundle_that_the_app_refers_to_is_not_trained(bundle_3d, studies_3d, tmp_path):
    from monai_diffae.errors import ConfigError
    from monai_diffae.label.app_folder import make_app_folder
    from monai_diffae.label.datastore import FolderDatastore
    from monai_diffae.label.served_model import ServedModel

    folder = make_app_folder(tmp_path / "app", bundle_3d, refer=True)
    trainer = DiffAETrainer(ServedModel(bundle_3d, "cpu"), folder)
    with pytest.raises(ConfigError, match="uses a bundle outside its folder"):
        trainer({"model": "diffae", **QUICK}, FolderDatastore(str(studies_3d.folder)))


@pytest.mark.slow
def test_a_second_training_is_refused_and_the_first_goes_on(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    answers = []
    first = threading.Thread(target=lambda: answers.append(train(server, max_epochs=3)))
    first.start()
    (trainer,) = server.app._trainers.values()
    while not trainer._state.is_running():
        time.sleep(0.01)
    with pytest.raises(BusyError, match="a training is running"):
        trainer({"model": "diffae", **QUICK}, server.app.datastore())
    first.join()
    assert answers[0].status_code == 200


def test_a_training_of_another_process_is_noticed(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    server.app.folder.training.mkdir()
    with FileLock(server.app.folder.training / ".lock"):
        response = train(server)
    assert (response.status_code, response.json()["detail"][:28]) == (409, "train: a training is running")
    assert train(server).status_code == 200


def test_a_training_that_was_killed_is_not_running(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    (trainer,) = server.app._trainers.values()
    trainer._state.write({"epoch": 1, "total_epochs": 9})
    assert server.client.get("/info/").json()["train_stats"]["diffae"]["total_time"] == "stopped"


@pytest.mark.slow
def test_mlflow_has_a_run(serve, bundle_3d, studies_3d, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    server = serve(bundle_3d, studies_3d)
    assert train(server, mlflow=True).status_code == 200
    client = MlflowClient(f"sqlite:///{server.app.folder.path / 'mlflow.db'}")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert "training/loss" in run.data.metrics
