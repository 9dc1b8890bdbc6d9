"""The real server as a process of its own, used by MONAI Label's client: from the first score to the trained model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

import requests
from label_scans import Studies, direction_for, fill, shared
from monailabel.client import MONAILabelClient
from PIL import Image

from monai_diffae import label_app
from monai_diffae.bundle import checksum
from monai_diffae.data.scans import read_scan

PICTURES = (".jpeg", ".jpg", ".png")


class RunningServer:
    """A server process, and MONAI Label's client for it."""

    def __init__(self, app: Path, studies: Studies, tmp_path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.app, self.studies = f"http://127.0.0.1:{port}", app, studies
        self.output = tmp_path / "output.txt"
        words = ["label-server", str(app), str(studies.folder), "--port", str(port)]
        with open(self.output, "w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "monai_diffae", *words], stdout=stream, stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
            )  # fmt: skip
        self.client = MONAILabelClient(self.url, str(tmp_path))
        self.wait(lambda: self._answers(), 120)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        try:
            return requests.get(f"{self.url}/info/", timeout=5).ok
        except requests.ConnectionError:
            return False

    @staticmethod
    def wait(is_done, most_s: float) -> None:
        end = time.monotonic() + most_s
        while not is_done():
            assert time.monotonic() < end, "it takes too long"
            time.sleep(0.3)

    def infer(self, model: str, image: str, **params):
        """The image's path, or None, and the figures."""
        file, figures = self.client.infer(model, image, params)
        return file, json.loads(figures) if isinstance(figures, bytes) else figures

    def job(self, method: str) -> dict:
        """The last job of a kind, once it has ended."""

        def ended():
            answer = requests.get(f"{self.url}/{method}/", timeout=30)
            return answer.ok and answer.json()["status"] in ("DONE", "ERROR", "STOPPED")

        self.wait(ended, 240)
        return requests.get(f"{self.url}/{method}/", timeout=30).json()

    def end(self) -> int:
        """The exit code after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()


@pytest.fixture(params=["diffae_3d", pytest.param("diffae_2d", marks=pytest.mark.slow)])
def server(request, bundle_2d, bundle_3d, volumes, pictures, tmp_path):
    """A server for volumes with a 3D bundle, or for pictures and the slices of volumes with a 2D bundle."""
    names = [*list(volumes)[:5], "series-1"]
    scans = {name: volumes[name] for name in names}
    if request.param == "diffae_2d":
        scans |= {name: pictures[name] for name in list(pictures)[:3]}
    bundle = {"diffae_3d": bundle_3d, "diffae_2d": bundle_2d}[request.param]
    app = label_app(tmp_path / "app", bundle=bundle).folder
    (app / "directions" / "age.json").write_text(json.dumps(direction_for(app / "bundle").to_json()))
    running = RunningServer(app, fill(tmp_path / "studies", scans), tmp_path)
    yield running
    running.end()


def check_space(file: str, source: Path) -> None:
    """The shape and affine of an answer are those of the source, to the bit."""
    scan = read_scan(source)
    if file.endswith(".png"):
        assert np.asarray(Image.open(file)).shape == scan.array.shape[1:]
        return
    image = nib.load(file)
    expected = scan.array.shape[1:] if scan.spatial_dims == 3 else (*scan.array.shape[1:], 1)
    assert image.shape == expected
    if source.suffix not in PICTURES:
        np.testing.assert_array_equal(image.affine, scan.affine)


def check_every_task(server: RunningServer, image: str) -> str:
    """Run every task for an image; returns the checksum of the model."""
    source = server.studies.source[image]
    for model in ("diffae_reconstruct", "diffae_edit", "diffae_anomaly_map", "diffae_anomaly"):
        file, figures = server.infer(model, image)
        check_space(file, source)
        os.unlink(file)
    assert figures["label_names"] == {"anomalies": 1}
    nrrd, _ = server.infer("diffae_anomaly", image, result_extension=".nrrd", result_dtype="uint8")
    assert nrrd.endswith(".nrrd")
    file, codes = server.infer("diffae_encode", image)
    assert file is None
    assert np.isfinite(codes["z_sem"]).all()
    assert len(server.infer("diffae_neighbors", image, k=2)[1]["neighbors"]) == 2
    return codes["model"]


def test_from_the_first_score_to_the_trained_model(server):
    client, images = server.client, list(server.studies.source)
    info = client.info()
    assert set(info["strategies"]) >= {"diffae_diversity", "diffae_mixed"}
    assert info["datastore"]["total"] == len(images)

    assert server.job("scoring")["status"] == "DONE"  # it started by itself
    first, second = (client.next_sample("diffae_diversity", {})["id"] for _ in range(2))
    assert first != second
    assert {first, second} <= set(images)

    kinds = {"hippocampus_001", "series-1", images[-1]}
    before = {check_every_task(server, image) for image in kinds}
    assert before == {checksum(server.app / "bundle")}

    label = shared("hippocampus_msd/labels", "hippocampus_001.nii.gz")[0]
    assert client.save_label("hippocampus_001", str(label), "final", {"class": "left"})["label"] == "hippocampus_001"
    assert client.info()["datastore"]["completed"] == 1
    assert Path(client.download_label("hippocampus_001", "final")).read_bytes() == label.read_bytes()
    assert client.next_sample("diffae_uncertain", {})["selection"]["probe"] == "class"

    client.train_start("diffae", {"max_epochs": 2})
    refused = requests.post(f"{server.url}/train/diffae", json={"max_epochs": 1}, timeout=30)
    assert (refused.status_code, refused.json()["detail"][:28]) == (409, "train: a training is running")
    job = server.job("train")
    assert job["status"] == "DONE", job["details"]
    assert any("epoch 2 of 2" in line for line in job["details"])
    stats = client.info()["train_stats"]["diffae"]
    assert (stats["images"], stats["failed"], stats["epoch"]) == (len(images), 0, 2)

    (server.app / "directions" / "age.json").write_text(json.dumps(direction_for(server.app / "bundle").to_json()))
    after = {check_every_task(server, image) for image in kinds}
    assert after == {stats["model"]} != before
    assert client.next_sample("diffae_mixed", {})["selection"]["scored"] == len(images)

    client.train_start("diffae", {"max_epochs": 10_000})
    server.wait(lambda: requests.get(f"{server.url}/train/?check_if_running=true", timeout=30).ok, 60)
    client.train_stop()
    assert server.job("train")["status"] == "STOPPED"
    assert checksum(server.app / "bundle") == stats["model"]

    assert server.end() == 0
    text = server.output.read_text() + (server.app / "logs" / "app.log").read_text()
    assert "epoch 2 of 2" in text
    assert [name for name in [*images, str(server.studies.folder)] if name in text] == []


@pytest.mark.slow
def test_the_server_answers_and_ends_during_an_inference(bundle_3d, studies_3d, tmp_path):
    app = label_app(tmp_path / "app", bundle=bundle_3d).folder
    server = RunningServer(app, studies_3d, tmp_path)
    check_loopback(server.url)
    server.job("scoring")
    params = {"mode": "z_sem", "draws": 100, "steps": 300}  # minutes
    thread = threading.Thread(
        target=lambda: requests.post(
            f"{server.url}/infer/diffae_reconstruct?image=hippocampus_001", data={"params": json.dumps(params)},
            timeout=300,
        ),
        daemon=True,
    )  # fmt: skip
    thread.start()
    time.sleep(1)
    latencies = []
    for _ in range(10):
        start = time.monotonic()
        assert requests.get(f"{server.url}/info/", timeout=30).ok
        latencies.append(time.monotonic() - start)
    assert thread.is_alive()
    assert max(latencies) < 1
    start = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - start < 20


def check_loopback(url: str) -> None:
    """The server's port is open on the loopback address only."""
    tables = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]  # Linux
    port = f":{int(url.rpartition(':')[2]):04X}"
    rows = [line.split() for path in tables for line in path.read_text().splitlines()]
    addresses = {row[1] for row in rows if row[1].endswith(port) and row[3] == "0A"}
    assert addresses <= {f"0100007F{port}"}
