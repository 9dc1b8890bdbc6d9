"""Tracking with MLflow: what a run says and what it must not say, the logged model, and stores that fail."""

import io
import json
import logging
import os
import shutil
import sqlite3

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import list_artifacts
from PIL import Image

from monai_diffae.apps.evaluation import finish_training
from monai_diffae.apps.tracking import log_to_training
from monai_diffae.bundle import load_bundle
from monai_diffae.data import SplitCohort
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.errors import ScanError
from monai_diffae.handlers.logged_model import _load_pyfunc
from monai_diffae.handlers.mlflow import RUN_ID, without_paths

NAME = "Mustermann"
TRACKED = {
    "mlflow": True, "batch_size": 2, "val_interval": 1, "num_pictures": 2, "report_every": 1,
    "lr_schedule": "constant",
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("one_migration")


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def private_cohort(tmp_path_factory):
    """Patients' names in a folder, in file names and in a column of the table."""
    folder = tmp_path_factory.mktemp("data") / NAME / "cohort"
    table = make_virtual_cohort(folder, num_patients=10, size=16, val_fraction=0.2, test_fraction=0.2)
    frame = pd.read_csv(table)
    for i, image in enumerate(frame["image"]):
        new = image.replace("mni-", f"{NAME}-")
        (folder / image).rename(folder / new)
        frame.loc[i, "image"] = new
    frame["patient"] = [f"{NAME}, no. {i}" for i in range(len(frame))]
    frame.to_csv(table, index=False)
    return table


@pytest.fixture(scope="module")
def train(make_workflow_anywhere, private_cohort):
    """Trains in a folder with tracking, and returns the workflow."""

    def call(out, **more):
        settings = {"dataset_dir": str(private_cohort), **TRACKED, "output_dir": str(out), **more}
        settings["train#dataset#cache_dir"] = f"{private_cohort.parent}/cache"
        workflow = make_workflow_anywhere(settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            workflow.run()
        return workflow

    return call


@pytest.fixture(scope="module")
def tracked(train, tmp_path_factory):
    """The folder of a training that was tracked, resumed for a second epoch, and its workflow; a copy is in between."""
    out = tmp_path_factory.mktemp("tracked") / "out"
    train(out)
    shutil.copytree(out, out.with_name("copied"))
    return out, train(out, max_epochs=2, registered_model="tiny")


def client_and_run(out):
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    return client, client.get_run((out / "mlflow_run_id").read_text())


def test_a_run_is_tracked_with_parameters_metrics_and_artifacts_and_resumed_as_the_same_run(tracked):
    out = tracked[0]
    client, run = client_and_run(out)
    assert run.info.run_id == (out.with_name("copied") / "mlflow_run_id").read_text()
    assert len(client.search_runs([run.info.experiment_id])) == 1
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "training/loss")]
    assert steps == pd.read_csv(out / "curves.csv").dropna(subset=["loss"])["step"].tolist() != []
    assert run.info.status == "FINISHED"
    assert run.data.params["base_channels"] == "4"
    assert {"dataset_dir", "output_dir", "bundle_root"}.isdisjoint(run.data.params)
    assert run.info.run_name == "diffae_2d 16x16"
    assert run.data.tags["num_patients"] == "10"
    metrics = ("training/loss", "training/images_seen", "training/learning_rate", "validation/loss")
    assert {*metrics, "validation/z_sem_usage"} <= run.data.metrics.keys()
    files = [file.relative_to(out / "mlruns").as_posix() for file in (out / "mlruns").rglob("*") if file.is_file()]
    artifacts = {file.split("artifacts/")[-1] for file in files}
    models = {f"data/bundle/models/{name}" for name in ("model.pt", "model.safetensors", "anomaly.safetensors")}
    others = {"config.json", "curves.png", "latest.png", "MLmodel"}
    assert others | models <= artifacts
    assert any(artifact.startswith("images/reconstructions") for artifact in artifacts)


def artifacts(folder):
    return sorted(file.relative_to(folder) for file in (folder / "mlruns").rglob("*") if file.is_file())


def test_a_copied_or_moved_folder_tracks_into_itself(tracked, train):
    """MLflow stores absolute paths."""
    copied, before = tracked[0].with_name("copied"), artifacts(tracked[0])
    old_run, old_artifacts = (copied / "mlflow_run_id").read_text(), artifacts(copied)
    log_to_training(copied, {"auroc": 0.5}, [copied / "curves.png"], "report")
    assert artifacts(copied) == old_artifacts
    train(copied, max_epochs=2)
    client, run = client_and_run(copied)
    assert client.get_run(old_run).data.metrics["report/auroc"] == 0.5
    assert client.get_experiment(run.info.experiment_id).name == "monai_diffae 2"
    log_to_training(copied, {}, [copied / "curves.png"], "report")
    assert list_artifacts(artifact_uri=f"{run.info.artifact_uri}/report")
    assert len(artifacts(copied)) > len(old_artifacts)
    assert artifacts(tracked[0]) == before


def test_nothing_that_is_tracked_names_a_patient_or_a_folder(tracked, private_cohort):
    out = tracked[0]
    assert [p.name for p in out.rglob("*") if p.is_file() and NAME.encode() in p.read_bytes()] == []
    assert [p for p in out.rglob("*") if NAME in p.name] == []
    text = "\n".join(sqlite3.connect(out / "mlflow.db").iterdump())
    assert str(private_cohort.parent) not in text


def test_the_model_is_registered_with_a_signature(tracked):
    client, run = client_and_run(tracked[0])
    (version,) = client.search_model_versions("name='tiny'")
    output = max(run.outputs.model_outputs, key=lambda model: model.step)
    logged = client.get_logged_model(output.model_id)
    assert (version.run_id, version.version, version.description) == (run.info.run_id, 1, run.info.run_name)
    assert version.source == logged.artifact_location
    assert str(logged.status) == "READY"
    models = tracked[0] / "mlruns" / "models" / output.model_id / "artifacts"
    text = (models / "MLmodel").read_text()
    assert '"name": "image"' in text
    assert '"shape": [-1,' in text
    assert str(tracked[0]) not in text
    assert not [file.name for file in models.rglob("*") if file.suffix in (".pkl", ".pickle", ".py")]


@pytest.mark.goal(id="R17")
def test_a_server_that_is_down_is_one_line_and_the_training_continues(make_workflow, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING):
        make_workflow({"mlflow": True, "tracking_uri": "http://127.0.0.1:9"}).run()
    lines = [r for r in caplog.records if "MLflow tracking failed" in r.getMessage()]
    assert len(lines) == 1
    assert "\n" not in lines[0].getMessage()
    assert (tmp_path / "out" / "models" / "model.pt").is_file()


PRIVATE = {
    "dataset_dir": f"/data/{NAME}",
    "cohort#dataset_dir": f"{NAME}/scans",
    "cohort": {"dataset_dir": NAME, "patient_pattern": f"({NAME})"},
    "train": {"handlers": [{"tracking_uri": f"https://{NAME}:secret@host"}, {"cache_dir": f"/home/{NAME}/cache"}]},
    "bundle_root": f"$'/home/{NAME}/bundle'",
    "cache": f"C:\\{NAME}",
}
PUBLIC = {"output_dir": "@bundle_root", "ckpt_path": "$@bundle_root + '/models/model.pt'", "lr": 1, "mode": "x_T"}


def test_what_the_user_wrote_of_the_data_is_not_tracked():
    shown = json.dumps(without_paths({**PRIVATE, "bundle_root": "."}))
    assert NAME not in shown
    assert {"lr": 1, "mode": "x_T"}.items() <= without_paths(PUBLIC).items()


def test_telemetry_of_mlflow_is_off():
    """Goal R22."""
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.fixture(scope="module")
def served(tiny_bundle):
    return _load_pyfunc(str(tiny_bundle.directory))


def test_z_sem_is_that_of_the_opened_file_to_the_bit(served, tiny_bundle):
    trained = load_bundle(tiny_bundle.directory, "cpu")
    frame = pd.read_csv(tiny_bundle.cohort).head(3)
    files = [tiny_bundle.cohort.parent / image for image in frame["image"]]
    rows = [{"image": file.read_bytes(), "file_name": file.name} for file in files]
    answers = served.predict(pd.DataFrame(rows))
    expected = [trained.open(file).z_sem.mean(dim=0).numpy() for file in files]
    assert answers.dtype == np.float32
    assert np.array_equal(answers, np.stack(expected))


def test_the_name_matters_only_for_its_ending_and_is_not_told(served):
    stream = io.BytesIO()
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(stream, "png")
    names = ["scan.png", "../../etc/Mustermann.PNG", "https://example.org/a.png"]
    answers = served.predict(pd.DataFrame({"image": [stream.getvalue()] * 3, "file_name": names}))
    assert (answers == answers[0]).all()
    with pytest.raises(ScanError) as error:
        served.predict(pd.DataFrame({"image": [b"no image"], "file_name": ["Mustermann.png"]}))
    assert "Mustermann" not in str(error.value)


def test_a_training_without_mlflow_does_not_log_to_the_run_of_an_earlier_one(tmp_path, caplog):
    (tmp_path / RUN_ID).write_text("of an earlier training")
    for mlflow in (False, True):
        finish_training(tmp_path, SplitCohort([]), None, 0, "cpu", mlflow, None, None)
        assert ("is not logged" in caplog.text) == mlflow
