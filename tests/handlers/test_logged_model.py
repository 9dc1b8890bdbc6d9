import base64
import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from monai_diffae.bundle.folders import export_bundle
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.handlers.logged_model import log_bundle

pytestmark = pytest.mark.usefixtures("one_migration")


@pytest.fixture(scope="module")
def tracked(make_workflow_anywhere, tmp_path_factory):
    """The output folder of a tracked training, and its workflow."""
    out = tmp_path_factory.mktemp("tracked") / "out"
    before = os.environ.pop("MLFLOW_TRACKING_URI", None)
    workflow = make_workflow_anywhere({"output_dir": str(out), "mlflow": True, "registered_model": "tiny"})
    workflow.run()
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before
    return out, workflow


def client_and_run(out):
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    return client, client.get_run((out / "mlflow_run_id").read_text())


def test_the_model_is_registered_with_a_signature_and_the_run_says_how_to_serve_it(tracked):
    client, run = client_and_run(tracked[0])
    (version,) = client.search_model_versions("name='tiny'")
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert (version.run_id, version.version, version.description) == (run.info.run_id, 1, run.info.run_name)
    assert version.source == logged.artifact_location
    assert str(logged.status) == "READY"
    assert {metric.key for metric in logged.metrics} >= {"validation/loss", "validation/z_sem_usage"}
    models = tracked[0] / "mlruns" / "models" / output.model_id / "artifacts"
    text = (models / "MLmodel").read_text()
    assert '"name": "image"' in text
    assert '"shape": [-1,' in text
    assert str(tracked[0]) not in text
    assert not [file.name for file in models.rglob("*") if file.suffix in (".pkl", ".pickle", ".py")]
    assert "mlflow models serve --model-uri models:/tiny/1" in run.data.tags["mlflow.note.content"]


def test_a_training_that_is_complete_registers_nothing_again(tracked):
    tracked[1].parser["overwrite"] = False
    out, workflow = tracked
    workflow.parser.get_parsed_content("train#trainer").run()
    root = workflow.parser.get_parsed_content("bundle_root")
    log_bundle(out, lambda folder: export_bundle(root, out, folder), registered_model="tiny")
    client, run = client_and_run(out)
    assert len(client.search_model_versions("name='tiny'")) == 1
    assert len(run.outputs.model_outputs) == 1


def test_a_store_without_a_registry_gets_the_model_and_a_line(make_workflow, tmp_path, caplog, monkeypatch):
    def no_registry(*args, **kwargs):
        raise MlflowException("Model Registry features are not supported by the store")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(MlflowClient, "create_registered_model", no_registry)
    workflow = make_workflow({"mlflow": True})
    with caplog.at_level(logging.INFO, "monai_diffae"):
        workflow.run()
    assert "the model is logged with MLflow, but not registered: Model Registry features" in caplog.text
    client, run = client_and_run(tmp_path / "out")
    assert str(client.get_logged_model(run.outputs.model_outputs[0].model_id).status) == "READY"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(url, content):
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


@pytest.mark.slow
def test_a_real_server_answers_with_z_sem_for_an_image(tracked, small_cohort, tmp_path):
    out, port = tracked[0], free_port()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # MLflow starts uvicorn by its name
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{out / 'mlflow.db'}"}
    command = ["models", "serve", "--model-uri", "models:/tiny/1", "--env-manager", "local", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/ping", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                assert server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
        files = [small_cohort.parent / image for image in pd.read_csv(small_cohort)["image"].head(2)]
        rows = [{"image": base64.b64encode(f.read_bytes()).decode(), "file_name": f.name} for f in files]
        answer = post(f"{url}/invocations", {"dataframe_records": rows})["predictions"]
    finally:
        if server.poll() is None:
            os.killpg(server.pid, 15)
            server.wait(30)
    trained = load_bundle(out, "cpu")
    expected = [trained.open(file).z_sem.mean(dim=0).numpy() for file in files]
    assert np.allclose(np.array(answer, np.float32), expected, atol=1e-5)
