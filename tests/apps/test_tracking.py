import logging
import os
import subprocess
import sys

import mlflow
import pandas as pd
import pytest

from monai_diffae.apps.results import log_to_open_run
from monai_diffae.apps.synthesis.edit import edit
from monai_diffae.apps.synthesis.fit_direction import fit_direction
from monai_diffae.apps.synthesis.generate import generate
from monai_diffae.apps.synthesis.grade import grade
from monai_diffae.apps.synthesis.interpolate import interpolate
from monai_diffae.apps.synthesis.traverse import traverse
from monai_diffae.apps.synthesis.vary import vary
from monai_diffae.apps.tracking import log_to_training

pytestmark = pytest.mark.usefixtures("one_migration")
FAST = {"device": "cpu", "overrides": {"inferer#steps": 2, "inferer#invert_steps": 2}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The folder of a sqlite database and its artifacts; afterwards the address is what it was, or none.

    MLflow keeps the address in the environment, so that its default, too, would become the address of later trainings:
    a database in the working directory.
    """
    folder, before = tmp_path_factory.mktemp("server"), os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.create_experiment("synthesis", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("synthesis")
    yield folder
    mlflow.set_tracking_uri(before)
    assert os.environ.get("MLFLOW_TRACKING_URI") == before


@pytest.fixture
def client(server):
    yield mlflow.MlflowClient()
    while mlflow.active_run():
        mlflow.end_run()


def test_numbers_and_pictures_reach_an_open_run_and_no_case_is_named(labelled, latent_bundle, client, server, tmp_path):
    ids = pd.read_csv(labelled.cohort)["id"].tolist()
    with mlflow.start_run() as run:
        fit_direction(labelled.embeddings, tmp_path / "wide.json", target="wide")
        grade(labelled.embeddings, tmp_path / "grades.csv", direction=tmp_path / "wide.json")
        edit(
            labelled.bundle, labelled.cohort, tmp_path / "e", direction=labelled.direction, strengths=(2,), limit=1,
            embeddings=labelled.embeddings, **FAST,
        )  # fmt: skip
        interpolate(labelled.bundle, labelled.cohort, tmp_path / "i", start=ids[0], end=ids[1], **FAST)
        made = vary(labelled.bundle, labelled.cohort, tmp_path / "v", case=ids[0], num_images=2, **FAST)
        traverse(labelled.bundle, labelled.embeddings, tmp_path / "w", num_components=1, strengths=(0,), **FAST)
        generate(latent_bundle, tmp_path / "s", num_images=1, **FAST)
    logged = client.get_run(run.info.run_id).data
    assert logged.metrics.keys() == {
        "directions/wide_score", "grades/wide_train", "grades/wide_val", "grades/wide_test", "edits/num_cases",
        "edits/num_failed", "edits/monotone", "edits/achieved",
        "variations/mean_std", "generated/num_images", "generated/accepted",
    }  # fmt: skip
    assert logged.metrics["variations/mean_std"] == pytest.approx(made.mean_std)
    files = [file for file in (server / "artifacts").rglob("*") if file.is_file()]
    pictures = {"edits.png", "interpolation.png", "variations.png", "traversal.png", "generated.png"}
    assert {file.name for file in files} == pictures
    assert not logged.params
    # nothing that names a case or a folder, in the database or the pictures
    contents = [file.read_bytes() for file in files]
    contents.append(str((logged.metrics, [file.relative_to(server) for file in files])).encode())
    for content in contents:
        assert not any(secret.encode() in content for secret in (*ids, "mni-", str(tmp_path), "cohort.csv"))
    database = (server / "mlflow.db").read_bytes()
    assert not any(secret.encode() in database for secret in ("mni-", "cohort.csv", str(tmp_path)))


def test_a_column_name_that_mlflow_refuses_is_logged_all_the_same(client):
    with mlflow.start_run() as run:
        log_to_open_run({"age (years)_score": 0.5}, [], "directions")
    assert client.get_run(run.info.run_id).data.metrics == {"directions/age _years__score": 0.5}


def test_without_an_open_run_nothing_happens(client, tmp_path):
    experiment = client.get_experiment_by_name("synthesis").experiment_id
    before = len(client.search_runs([experiment]))
    log_to_open_run({"a": 1.0}, [], "directions")
    assert len(client.search_runs([experiment])) == before
    code = (
        "import sys; from monai_diffae.apps.results import log_to_open_run; log_to_open_run({'a': 1.0}, [], 'b'); "
        "print('mlflow' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert printed.stdout.strip() == "False"


def test_a_server_that_fails_only_warns(client, server, labelled, tmp_path, caplog):
    with mlflow.start_run(), caplog.at_level(logging.WARNING, "monai_diffae"):
        log_to_open_run({"a": 1.0}, [tmp_path / "mni-000000.png"], "edits")  # which is not there
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'no' / 'folder' / 'x.db'}")
        (tmp_path / "no").write_text("a file where a folder should be")
        fit_direction(labelled.embeddings, tmp_path / "wide.json", target="wide")
        mlflow.set_tracking_uri(f"sqlite:///{server / 'mlflow.db'}")
    warnings = [record.getMessage() for record in caplog.records if record.name == "monai_diffae.apps.results"]
    assert len(warnings) == 2
    assert all(text.startswith("MLflow tracking failed: ") for text in warnings)
    assert "mni-" not in "".join(warnings)
    assert (tmp_path / "wide.json").read_bytes() == labelled.direction.read_bytes()


@pytest.fixture(scope="module")
def tracked(make_workflow_anywhere, tmp_path_factory):
    """The folder of a tracked training, with its MLflow database."""
    out = tmp_path_factory.mktemp("tracked") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it where a test sets its server
        make_workflow_anywhere({"output_dir": str(out), "mlflow": True, "registered_model": None}).run()
    return out


def test_results_of_a_model_reach_the_run_of_its_training(tracked, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "media").mkdir()
    for name in ("report.html", "media/a.png"):
        (tmp_path / name).write_text("content")
    log_to_training(tracked, {"psnr (dB)": 21.5}, [tmp_path / "report.html", tmp_path / "media"], "report")
    uri = f"sqlite:///{tracked / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # as if it were a server
    log_to_training(tracked, {}, [tmp_path / "report.html"], "ids", is_private=True)
    client = mlflow.MlflowClient(uri)
    run = client.get_run((tracked / "mlflow_run_id").read_text())
    assert run.data.metrics["report/psnr _dB_"] == 21.5
    assert [file.path for file in client.list_artifacts(run.info.run_id, "report")] == [
        "report/media", "report/report.html"
    ]  # fmt: skip
    assert client.list_artifacts(run.info.run_id, "ids") == []
    assert run.info.status == "FINISHED"


def test_a_model_without_a_run_of_its_own_is_left_alone(tracked, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_to_training(tmp_path, {"a": 1.0}, [], "report")
    (tmp_path / "mlflow_run_id").write_text("0" * 32)
    log_to_training(tmp_path, {"a": 1.0}, [], "report")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mlflow_run_id"]  # no new database
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tracked / 'mlflow.db'}")  # which has no such run
    log_to_training(tmp_path, {"a": 1.0}, [], "report")
    assert "MLflow" not in caplog.text
