"""The real server as a process of its own, used by MONAI Label's client: from the first score to the trained model."""

import json
import os
import socket
import threading
import time
from contextlib import closing
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from forked_program import wait_until
from label_scans import fill, some
from label_servers import ServerProcess
from scan_files import shared

from monai_diffae import label_app
from monai_diffae.bundle import checksum
from monai_diffae.data.scans import read_scan


class RunningServer(ServerProcess):
    """A server process for scans whose originals are known."""

    def __init__(self, start_program, app, studies):
        super().__init__(start_program, app, studies.folder)
        self.studies = studies

    def infer(self, model, image, **params):
        """The image's path, or None, and the figures."""
        file, figures = self.client.infer(model, image, params)
        return file, json.loads(figures) if isinstance(figures, bytes) else figures

    def job(self, method):
        """The last job of a kind, once it has ended."""

        def ended():
            answer = requests.get(f"{self.url}/{method}/", timeout=30)
            return answer.ok and answer.json()["status"] in ("DONE", "ERROR", "STOPPED") and answer.json()

        return wait_until(ended, 240)

    def refuses_training(self):
        """Whether there is a training, so that it refuses another one."""
        answer = requests.post(f"{self.url}/train/diffae", json={"max_epochs": 1}, timeout=30)
        return (answer.status_code, answer.json()["detail"][:28]) == (409, "train: a training is running")


@pytest.fixture
def server(bundle_3d, volumes, start_program, tmp_path):
    app = label_app(tmp_path / "app", bundle=bundle_3d).folder
    running = RunningServer(start_program, app, fill(tmp_path / "studies", some(volumes, 5)))
    yield running
    assert running.close() == 0


def check_tasks(server, image):
    """Run tasks that give an image and figures; returns the checksum of the model. test_tasks.py tests all of them."""
    file, figures = server.infer("diffae_anomaly", image)
    answer, scan = nib.load(file), read_scan(server.studies.source[image])
    assert answer.shape == scan.array.shape[1:]
    np.testing.assert_array_equal(answer.affine, scan.affine)
    os.unlink(file)
    assert figures["label_names"] == {"anomalies": 1}
    file, codes = server.infer("diffae_encode", image)
    assert file is None
    assert np.isfinite(codes["z_sem"]).all()
    return codes["model"]


def test_from_the_first_score_to_the_trained_model(server):
    client, images = server.client, list(server.studies.source)
    assert client.info()["datastore"]["total"] == len(images)
    assert server.job("scoring")["status"] == "DONE"  # it started by itself
    first, second = (client.next_sample("diffae_diversity", {})["id"] for _ in range(2))
    assert first != second
    assert {first, second} <= set(images)
    before = check_tasks(server, "series-1")
    assert before == checksum(server.app / "bundle")
    label = shared("hippocampus_msd/labels/hippocampus_001.nii.gz")
    assert client.save_label("hippocampus_001", str(label), "final", {"class": "left"})["label"] == "hippocampus_001"
    assert client.info()["datastore"]["completed"] == 1
    assert Path(client.download_label("hippocampus_001", "final")).read_bytes() == label.read_bytes()
    assert client.next_sample("diffae_uncertain", {})["selection"]["probe"] == "class"
    client.train_start("diffae", {"max_epochs": 2, "mlflow": False})
    assert server.refuses_training()
    job = server.job("train")
    assert job["status"] == "DONE", job["details"]
    assert any("epoch 2 of 2" in line for line in job["details"])
    stats = client.info()["train_stats"]["diffae"]
    assert (stats["images"], stats["failed"], stats["epoch"]) == (len(images), 0, 2)
    after = check_tasks(server, "hippocampus_001")
    assert after == stats["model"] == checksum(server.app / "bundle") != before
    assert client.next_sample("diffae_mixed", {})["selection"]["scored"] == len(images)
    text = server.output.read_text() + (server.app / "logs" / "app.log").read_text()
    assert "epoch 2 of 2" in text
    assert [name for name in images if name in text] == []


@pytest.mark.slow
def test_a_training_is_stopped_and_the_server_answers_and_ends_during_an_inference(
    bundle_3d, studies_3d, start_program, tmp_path
):
    app = label_app(tmp_path / "app", bundle=bundle_3d).folder
    with closing(RunningServer(start_program, app, studies_3d)) as server:
        with pytest.raises(OSError, match="refused"):  # the server listens at 127.0.0.1 only
            socket.create_connection(("127.0.0.2", int(server.url.rpartition(":")[2])))
        assert server.job("scoring")["status"] == "DONE"
        server.client.train_start("diffae", {"max_epochs": 1})
        assert server.job("train")["status"] == "DONE"
        assert (app / "mlflow.db").is_file()
        before = checksum(app / "bundle")
        server.client.train_start("diffae", {"max_epochs": 10_000})
        assert wait_until(lambda: requests.get(f"{server.url}/train/?check_if_running=true", timeout=30).ok, 60)
        server.client.train_stop()
        assert server.job("train")["status"] == "STOPPED"
        assert checksum(app / "bundle") == before
        url, params = f"{server.url}/infer/diffae_reconstruct", {"mode": "z_sem", "draws": 100, "steps": 300}  # minutes
        request = {"params": {"image": "hippocampus_001"}, "data": {"params": json.dumps(params)}, "timeout": 300}
        thread = threading.Thread(target=requests.post, args=[url], kwargs=request, daemon=True)
        thread.start()
        time.sleep(1)
        assert requests.get(f"{server.url}/info/", timeout=1).ok
        assert thread.is_alive()
        start = time.monotonic()
        assert server.close() == 0
        assert time.monotonic() - start < 20
