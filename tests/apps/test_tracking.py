"""What commands log to MLflow: to a run that is open, and to that of the model's training."""

import os

import mlflow
import pandas as pd
import pytest

from monai_diffae import decode, edit, fit_direction, generate, predict
from monai_diffae.apps.tracking import log_to_open_run, log_to_training

pytestmark = pytest.mark.usefixtures("one_migration")
FAST = {"device": "cpu", "overrides": {"inferer#steps": 2, "inferer#invert_steps": 2}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The folder of a database and its artifacts; afterwards the address, which MLflow keeps, is what it was."""
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
        log_to_open_run({"age (years)_score": 0.5}, [], "directions")  # a name that MLflow refuses
        fit_direction(labelled.embeddings, tmp_path / "wide.json", target="wide")
        predict(labelled.bundle, labelled.embeddings, tmp_path / "p", labelled=tmp_path / "wide.json")
        edit(
            labelled.bundle, labelled.cohort, tmp_path / "e", direction=labelled.direction, strengths=(2,), limit=1,
            embeddings=labelled.embeddings, **FAST,
        )  # fmt: skip
        of_case = {"cohort": labelled.cohort, "case": ids[0], "num_images": 2, **FAST}
        decode(labelled.bundle, tmp_path / "i", show="path", blend=ids[1], **of_case)
        made = decode(labelled.bundle, tmp_path / "v", show="variations", **of_case)
        generate(latent_bundle, tmp_path / "s", num_images=1, **FAST)
    logged = client.get_run(run.info.run_id).data
    assert logged.metrics.keys() == {
        "directions/age _years__score", "directions/wide_score", "predictions/wide_expected",
        "predictions/wide_measured", "edits/num_cases", "edits/num_failed", "edits/monotone", "edits/achieved",
        "edits/change_of_brightness", "edits/change_outside",
        "variations/mean_std", "generated/num_images", "generated/accepted",
    }  # fmt: skip
    assert logged.metrics["variations/mean_std"] == pytest.approx(made.mean_std)
    files = [file for file in (server / "artifacts").rglob("*") if file.is_file()]
    pictures = {"edits.png", "path.png", "variations.png", "generated.png"}
    assert {file.name for file in files} == pictures
    assert not logged.params
    # nothing that names a case or a folder, in the database or the pictures
    contents = [file.read_bytes() for file in files]
    contents.append(str((logged.metrics, [file.relative_to(server) for file in files])).encode())
    for content in contents:
        assert not any(secret.encode() in content for secret in (*ids, "mni-", str(tmp_path), "cohort.csv"))
    database = (server / "mlflow.db").read_bytes()
    assert not any(secret.encode() in database for secret in ("mni-", "cohort.csv", str(tmp_path)))


def test_without_an_open_run_nothing_happens_and_a_server_that_fails_only_warns(client, labelled, tmp_path, caplog):
    experiment = client.get_experiment_by_name("synthesis").experiment_id
    before = len(client.search_runs([experiment]))
    log_to_open_run({"a": 1.0}, [], "directions")
    assert len(client.search_runs([experiment])) == before
    address = mlflow.get_tracking_uri()
    with mlflow.start_run():
        log_to_open_run({"a": 1.0}, [tmp_path / "mni-000000.png"], "edits")  # which is not there
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'no' / 'folder' / 'x.db'}")
        (tmp_path / "no").write_text("a file where a folder should be")
        fit_direction(labelled.embeddings, tmp_path / "wide.json", target="wide")
        mlflow.set_tracking_uri(address)
    warnings = [record.getMessage() for record in caplog.records if record.name == "monai_diffae.apps.tracking"]
    assert [text.partition(": ")[0] for text in warnings] == ["MLflow tracking failed"] * 2
    assert "mni-" not in "".join(warnings)
    assert (tmp_path / "wide.json").read_bytes() == labelled.direction.read_bytes()


@pytest.fixture
def tracked(server, tmp_path, monkeypatch):
    """A bundle with the MLflow database of its training."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it where a test sets its server
    folder = tmp_path / "tracked"
    folder.mkdir()
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("training", artifact_location=(folder / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.set_terminated(run_id)
    (folder / "mlflow_run_id").write_text(run_id)
    return folder, client, run_id


def test_results_of_a_model_reach_the_run_of_its_training(tracked, tmp_path, monkeypatch):
    folder, client, run_id = tracked
    (tmp_path / "media").mkdir()
    for name in ("report.html", "media/a.png"):
        (tmp_path / name).write_text("content")
    log_to_training(folder, {"psnr (dB)": 21.5}, [tmp_path / "report.html", tmp_path / "media"], "report")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")  # as if it were a server
    log_to_training(folder, {}, [tmp_path / "report.html"], "ids", is_private=True)
    run = client.get_run(run_id)
    assert run.data.metrics["report/psnr _dB_"] == 21.5
    files = [file.path for file in client.list_artifacts(run_id, "report")]
    assert files == ["report/media", "report/report.html"]
    assert client.list_artifacts(run_id, "ids") == []
    assert run.info.status == "FINISHED"
