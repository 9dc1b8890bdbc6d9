import json
import logging
import os
import sqlite3
import subprocess
import sys

import pandas as pd
import pytest
from mlflow import MlflowClient

from monai_diffae.bundle.folders import export_bundle
from monai_diffae.bundle.private_values import without_paths
from monai_diffae.data.samples import make_virtual_cohort

NAME = "Mustermann"
pytestmark = pytest.mark.usefixtures("one_migration")


def tracked(make_workflow, **overrides):
    workflow = make_workflow({"mlflow": True, "val_interval": 1, "num_pictures": 2, "report_every": 1, **overrides})
    workflow.run()
    return workflow


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


def test_a_run_is_tracked_with_parameters_metrics_and_artifacts_and_no_names(
    make_workflow, tmp_path, private_cohort, monkeypatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "out"
    overrides = {"dataset_dir": str(private_cohort), "train#dataset#cache_dir": f"{private_cohort.parent}/cache"}
    tracked(make_workflow, **overrides)
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    run = client.get_run((out / "mlflow_run_id").read_text())
    assert run.info.status == "FINISHED"
    assert run.data.params["max_epochs"] == "1"
    assert run.data.params["base_channels"] == "8"
    assert {"dataset_dir", "output_dir", "bundle_root"}.isdisjoint(run.data.params)
    assert {
        "training/loss",
        "training/images_seen",
        "training/learning_rate",
        "validation/loss",
        "validation/z_sem_usage",
    } <= run.data.metrics.keys()
    artifacts = {
        p.relative_to(out / "mlruns").as_posix().split("artifacts/")[-1]
        for p in (out / "mlruns").rglob("*")
        if p.is_file()
    }
    assert {
        "config.json",
        "curves.png",
        "latest.png",
        "MLmodel",
        "data/bundle/models/model.pt",
        "data/bundle/models/config.json",
        "data/bundle/models/anomaly.pt",
        "data/bundle/configs/train.json",
    } <= artifacts
    assert any(a.startswith("images/reconstructions") for a in artifacts)
    with_name = [p.name for p in out.rglob("*") if p.is_file() and NAME.encode() in p.read_bytes()]
    assert with_name == []
    assert [p for p in out.rglob("*") if NAME in p.name] == []
    text = "\n".join(sqlite3.connect(out / "mlflow.db").iterdump())
    assert str(private_cohort.parent) not in text


@pytest.mark.goal(id="R17")
def test_a_server_that_is_down_is_said_once_and_training_goes_on(make_workflow, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING):
        tracked(make_workflow, tracking_uri="http://127.0.0.1:9")
    said = [r for r in caplog.records if "MLflow tracking failed" in r.getMessage()]
    assert len(said) == 1
    assert "\n" not in said[0].getMessage()
    assert (tmp_path / "out" / "models" / "model.pt").is_file()


@pytest.mark.goal(id="R17")
def test_a_folder_that_cannot_be_written_is_said_without_its_path(make_workflow, tmp_path, caplog, monkeypatch):
    def no_client(uri):
        raise FileExistsError(17, "File exists", f"/data/{NAME}/mlflow.db")

    monkeypatch.setattr("mlflow.MlflowClient", no_client)
    with caplog.at_level(logging.WARNING):
        tracked(make_workflow)
    assert "MLflow tracking failed" in caplog.text
    assert NAME not in caplog.text


def test_the_environments_tracking_uri_is_honoured_and_a_resumed_run_continues_its_run(
    make_workflow, tmp_path, monkeypatch
):
    uri = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracked(make_workflow, lr_schedule="constant")
    first = (tmp_path / "out" / "mlflow_run_id").read_text()
    tracked(make_workflow, lr_schedule="constant", max_epochs=2)
    assert (tmp_path / "out" / "mlflow_run_id").read_text() == first
    assert not (tmp_path / "out" / "mlflow.db").exists()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("monai_diffae")
    assert len(client.search_runs([experiment.experiment_id])) == 1
    steps = [m.step for m in client.get_metric_history(first, "training/loss")]
    assert steps == sorted(set(steps))
    assert client.get_run(first).info.status == "FINISHED"


def test_a_failed_run_is_marked_as_failed(make_workflow, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RuntimeError):
        tracked(make_workflow, learning_rate=1e30, max_epochs=3, batch_size=2, warmup_steps=0)
    out = tmp_path / "out"
    run = MlflowClient(f"sqlite:///{out / 'mlflow.db'}").get_run((out / "mlflow_run_id").read_text())
    assert run.info.status == "FAILED"


PRIVATE = {
    "dataset_dir": f"/data/{NAME}",
    "cohort#dataset_dir": f"{NAME}/scans",
    "cohort": {"dataset_dir": NAME, "patient_pattern": f"({NAME})"},
    "train": {"handlers": [{"tracking_uri": f"https://{NAME}:secret@host"}, {"cache_dir": f"/home/{NAME}/cache"}]},
    "bundle_root": f"$'/home/{NAME}/bundle'",
    "cache": f"C:\\{NAME}",
}
PUBLIC = {"output_dir": "@bundle_root", "ckpt_path": "$@bundle_root + '/models/model.pt'", "lr": 1, "mode": "x_T"}


def test_what_the_user_wrote_of_the_data_is_not_exported(tmp_path):
    (tmp_path / "b" / "configs" / "overlays").mkdir(parents=True)
    (tmp_path / "b" / "models").mkdir()
    (tmp_path / "b" / "models" / "model.pt").write_bytes(b"weights")
    for name in ("configs/train.json", "configs/overlays/mine.json", "models/config.json"):
        (tmp_path / "b" / name).write_text(json.dumps({**PRIVATE, **PUBLIC}))
    (tmp_path / "b" / "configs" / "overlays" / "mine.yaml").write_text(f"dataset_dir: /data/{NAME}")
    export_bundle(tmp_path / "b", tmp_path / "b", tmp_path / "e")
    exported = [p for p in (tmp_path / "e").rglob("*") if p.is_file()]
    assert len(exported) == 4
    assert [p.name for p in exported if NAME.encode() in p.read_bytes()] == []
    assert PUBLIC.items() <= json.loads((tmp_path / "e" / "configs" / "train.json").read_text()).items()


def test_what_the_user_wrote_of_the_data_is_not_tracked():
    shown = json.dumps(without_paths({**PRIVATE, "bundle_root": "."}))
    assert NAME not in shown
    assert {"lr": 1, "mode": "x_T"}.items() <= without_paths(PUBLIC).items()


def test_mlflow_writes_no_installation_id_into_the_home_folder(tmp_path):
    """Goal R22: MLflow writes it while it is imported, before any setting of ours after that would count."""
    never = ("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    env = {name: value for name, value in os.environ.items() if name not in never}
    env |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    code = "import sys, monai_diffae.handlers; assert 'mlflow.telemetry' in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=300)
    assert [path.name for path in tmp_path.rglob("telemetry*")] == []
