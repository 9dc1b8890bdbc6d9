"""Tracking with MLflow: parameters, curves, pictures, the configuration and the trained bundle."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.engines import Workflow

from monai_diffae.bundle.config import SEPARATOR, is_formula
from monai_diffae.bundle.folders import copy_model
from monai_diffae.data.atomic import write_atomic
from monai_diffae.engines.trainer import TrainingEvents
from monai_diffae.handlers.metric_names import tracked_name
from monai_diffae.handlers.tracked_training import TrackedTraining

logger = logging.getLogger(__name__)

DESCRIPTION = "mlflow.note.content"  # the tag that MLflow shows as the description
RUN_ID = "mlflow_run_id"  # file with the run's id, so that a resumed training continues its run
EXPERIMENT_KIND = "custom_model_development"  # MLflow then opens its page for model training, not that for agents
_LOCATIONS = (  # tables and columns with absolute paths of artifacts
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
)  # fmt: skip
# Values that may name a patient, a file or a folder are never tracked.
_PRIVATE_KEYS = ("_meta_", "dataset_dir", "output_dir", "bundle_root", "patient_pattern", "tracking_uri", "embeddings")

# A slash or backslash in plain text, or in an expression a quoted absolute path with at least two folders.
_PATH = re.compile(r"^[^$@%].*[/\\]|^[/\\]|^\$.*['\"]([A-Za-z]:)?[/\\][^'\"/\\]+[/\\]")
_PACKAGES = ("monai-diffae", "monai", "torch", "pytorch-ignite", "numpy", "mlflow")


def default_tracking_uri(output_dir: str | Path) -> str:
    """The environment variable ``MLFLOW_TRACKING_URI`` if it is set, else a SQLite database in the output folder."""
    from monai.utils import path_to_sqlite_uri

    return os.environ.get("MLFLOW_TRACKING_URI") or path_to_sqlite_uri(str(Path(output_dir).absolute() / "mlflow.db"))


def tracking_client(tracking_uri: str | None, output_dir: str | Path) -> Any:
    """MLflow's client of a training's database or server.

    MLflow stores the artifacts' folders as absolute paths. Those of a folder that was copied or moved with its database
    are corrected here, so that nothing is written into, or read from, the folder where it was trained.

    Args:
        tracking_uri: MLflow server or database; None: see :func:`default_tracking_uri`.
        output_dir: the training's folder.
    """
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.tracking._tracking_service import utils

    uri = tracking_uri or default_tracking_uri(output_dir)
    database = _database(uri)
    if database is not None and database.is_file():
        _correct_locations(database, is_own=database.parent.resolve() == Path(output_dir).resolve())
        utils._artifact_repos_cache.clear()  # by run: MLflow would use the folder of a run before it was copied
    return MlflowClient(uri)


def _database(tracking_uri: str) -> Path | None:
    """The file of a SQLite database; None for a server."""
    from sqlalchemy import make_url

    name = make_url(tracking_uri).database if tracking_uri.startswith("sqlite:") else None
    return Path(name).absolute() if name else None


def _correct_locations(database: Path, is_own: bool) -> None:
    """Replace absolute paths in a database by the folder ``mlruns`` beside it, if that has the experiment's files."""
    folder = database.parent / "mlruns"
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        query = "SELECT experiment_id, artifact_location FROM experiments WHERE artifact_location LIKE 'file:%/mlruns'"
        for experiment, old in connection.execute(query).fetchall() if "experiments" in tables else ():
            runs = connection.execute("SELECT run_uuid FROM runs WHERE experiment_id = ?", (experiment,))
            if old == folder.as_uri() or not (is_own or any((folder / run).is_dir() for (run,) in runs)):
                continue
            for table, column in _LOCATIONS:
                if table in tables:
                    change = f"{column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                    update = f"UPDATE {table} SET {change}"  # noqa: S608, names of _LOCATIONS
                    connection.execute(update, (folder.as_uri(), len(old) + 1, len(old), old))


class MLflowTracking:
    """Ignite handler: track a training with MLflow. Training continues if tracking fails.

    Parameters have the names of the configuration's keys. Nothing that names a patient, file or folder is sent:
    values that may name one are omitted, and the data are described by their fingerprint.

    Args:
        output_dir: the run's folder; it has the artifacts, and the run's id for a resumed training.
        run_config: the configuration of the run, not evaluated.
        tracking_uri: MLflow server or database; None: see :func:`default_tracking_uri`.
        experiment_name: MLflow experiment.
        run_name: MLflow run; None: the name of ``training``.
        tags: further properties of the run, such as the data's fingerprint.
        training: what is trained on what: the run's name, tags and description; None: MLflow chooses a name.
        evaluator: the evaluator whose metrics are logged after each validation.
        with_model: log the files of the model at the end; :func:`~monai_diffae.handlers.log_bundle` registers it, too.
        enabled: False: track nothing.
    """

    def __init__(
        self,
        output_dir: str | Path,
        run_config: dict[str, Any],
        tracking_uri: str | None = None,
        experiment_name: str = "monai_diffae",
        run_name: str | None = None,
        tags: dict[str, Any] | None = None,
        training: TrackedTraining | None = None,
        evaluator: Workflow | None = None,
        with_model: bool = False,
        enabled: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.config = without_paths(run_config)
        self.tracking_uri = tracking_uri or default_tracking_uri(output_dir)
        self.experiment_name = experiment_name
        self.training = training
        self.run_name = run_name or (training and training.name)
        self.tags = {**(training.tags if training else {}), **(tags or {})}
        self.evaluator = evaluator
        self.with_model = with_model
        self.enabled = enabled
        self.run_id: str | None = None
        self._client: Any = None

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer, and with the evaluator."""
        if not self.enabled:
            return
        self._trainer = engine
        engine.add_event_handler(Events.STARTED, lambda: self._try(self._start))
        engine.add_event_handler(TrainingEvents.STATISTICS, lambda: self._try(self._log_training))
        engine.add_event_handler(Events.COMPLETED, lambda: self._try(self._finish))
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, lambda: self._try(self._log_validation))

    def _try(self, action: Callable[[], None]) -> None:
        """Run ``action``. The first failure is logged and ends tracking, but not the training."""
        if not self.enabled:
            return
        try:
            action()
        except Exception as error:  # whatever a tracking server does, training continues
            self.enabled = False
            logger.warning("MLflow tracking failed and is off for the rest of this run: %s", reason(error))

    def _start(self) -> None:
        self._client = tracking_client(self.tracking_uri, self.output_dir)
        from mlflow.entities import Param, RunTag

        self.run_id = self._resumed_run() or self._create_run()
        # In batches: otherwise each parameter would wait for the disk or the server.
        parameters = [Param(key, value) for key, value in self._parameters().items()]
        for first in range(0, len(parameters), 100):
            self._client.log_batch(self.run_id, params=parameters[first : first + 100])
        tags = [RunTag(key, str(value)) for key, value in {**_versions(), **self.tags}.items()]
        self._client.log_batch(self.run_id, tags=tags)
        self._client.log_text(self.run_id, json.dumps(self.config, indent=2), "config.json")
        self._name_data()
        self._describe()

    def _resumed_run(self) -> str | None:
        id_file = self.output_dir / RUN_ID
        if not self._trainer.state.iteration or not id_file.is_file():
            return None
        run_id = id_file.read_text().strip()
        try:
            self._client.update_run(run_id, status="RUNNING")
        except Exception:
            return None  # the run is in another database
        return run_id

    def _create_run(self) -> str:
        experiment = self._client.get_experiment_by_name(self.experiment_name)
        if experiment is None:
            database = _database(self.tracking_uri)
            artifacts = (database.parent / "mlruns").as_uri() if database else None
            experiment = self._client.get_experiment(self._client.create_experiment(self.experiment_name, artifacts))
        if "mlflow.experimentKind" not in experiment.tags:
            self._client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", EXPERIMENT_KIND)
        tags = {"mlflow.user": "", "mlflow.source.name": "monai_diffae"}
        run = self._client.create_run(experiment.experiment_id, run_name=self.run_name, tags=tags)
        run_id = str(run.info.run_id)
        write_atomic(self.output_dir / RUN_ID, lambda path: path.write_text(run_id))
        return run_id

    def _name_data(self) -> None:
        """Show the number of scans as the run's dataset; its digest tells cohorts apart."""
        digest = str(self.tags.get("data.fingerprint", ""))[:16]
        if self.training is None or not digest:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(self.training.number_of_scans, digest, "cohort", "{}")
        self._client.log_inputs(self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])

    def _describe(self) -> None:
        """Write the run's description, with the newest metrics."""
        if self.training is None:
            return
        state, network = self._trainer.state, self._trainer.network  # type: ignore[attr-defined]
        facts = {
            "parameters": f"{sum(weight.numel() for weight in network.parameters()):,}",
            "steps": f"{state.max_epochs:,} epochs of {state.epoch_length:,} steps",
            "device": state.device,
        }
        metrics = self._client.get_run(self.run_id).data.metrics
        self._client.set_tag(self.run_id, DESCRIPTION, self.training.description(facts, metrics))

    def _parameters(self) -> dict[str, str]:
        logged = self._client.get_run(self.run_id).data.params
        # MLflow's names may have '/' but not '#'. The trainer's max_epochs is used if the configuration's is a formula.
        config = {"max_epochs": self._trainer.state.max_epochs, **flat_parameters(self.config)}
        parameters = {k.replace("#", "/"): str(v)[:500] for k, v in config.items()}
        return {k: v for k, v in parameters.items() if k not in logged}

    def _log_training(self) -> None:
        s = self._trainer.state.statistics
        self._log(
            {
                "loss": s.loss,
                "images_per_s": s.images_per_s,
                "images_seen": s.images_seen,
                "learning_rate": s.learning_rate,
            }
        )

    def _log_validation(self) -> None:
        metrics = {} if self.evaluator is None else self.evaluator.state.metrics
        self._log({f"validation_{name}": float(value) for name, value in metrics.items()})
        step = self._trainer.state.iteration
        picture = self.output_dir / "pictures" / f"step_{step:07d}.png"
        if picture.is_file():
            from PIL import Image

            with Image.open(picture) as image:
                self._client.log_image(self.run_id, image, key="reconstructions", step=step, synchronous=True)

    def _log(self, metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms, step = int(time.time() * 1000), self._trainer.state.iteration
        values = [Metric(tracked_name(name), value, now_ms, step) for name, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=values)

    def _finish(self) -> None:
        if self.with_model:
            with tempfile.TemporaryDirectory() as folder:
                copy_model(self.output_dir, Path(folder))
                self._client.log_artifacts(self.run_id, folder, "bundle")
        self._end("FINISHED")

    def _end(self, status: str) -> None:
        """Log what shows the whole training, and close the run."""
        for name in ("curves.png", "curves.csv", "pictures/latest.png"):
            if (self.output_dir / name).is_file():
                self._client.log_artifact(self.run_id, str(self.output_dir / name))
        self._describe()
        self._client.set_terminated(self.run_id, status)
        page = f"/#/experiments/{self._client.get_run(self.run_id).info.experiment_id}?workflowType=machine_learning"
        is_own = self.tracking_uri.endswith("/mlflow.db")
        start = "; in the folder of the results, start: mlflow ui --backend-store-uri sqlite:///mlflow.db"
        logger.info("MLflow: the run '%s' is on its page %s%s", self.run_name, page, start if is_own else "")

    def _fail(self, engine: Workflow, error: BaseException) -> None:
        if self._client is not None and self.run_id is not None:
            status = "KILLED" if isinstance(error, (SystemExit, KeyboardInterrupt)) else "FAILED"
            self._try(lambda: self._end(status))


def quiet_mlflow() -> None:
    """Let MLflow print no migrations, and give up on a server within seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default, retries take minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)


def reason(error: Exception) -> str:
    """What went wrong, in one line; without the path in the text of an OSError, which may name a patient."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return versions


# -- what is sent ------------------------------------------------------------------------------------------------------


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration to show to others: without data items, and without anything that looks like a path.

    Keys that may name a patient, file or folder are removed; below the top level, a formula stays.

    Example:
        >>> without_paths({"dataset_dir": "doe", "a": {"cache_dir": "/doe/cache", "b": "$@output_dir + '/cache'"}})
        {'a': {'cache_dir': '(path)', 'b': "$@output_dir + '/cache'"}}
    """

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: "(data)" if k == "data" and isinstance(v, list) else clean(v)
                for k, v in value.items()
                if SEPARATOR.split(k)[-1] not in _PRIVATE_KEYS or is_formula(v)
            }
        if isinstance(value, list):
            return [clean(item) for item in value]
        return "(path)" if isinstance(value, str) and _PATH.search(value) else value

    return {key: clean(value) for key, value in config.items() if key not in _PRIVATE_KEYS}


def flat_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The plain values of a configuration by their ids: ``{"train#trainer#max_epochs": 10, ...}``.

    Expressions, references and lists of components are omitted, as the configuration file has them.

    Example:
        >>> flat_parameters({"a": 1, "b": {"c": [2, 3], "d": "@a"}})
        {'a': 1, 'b#c': [2, 3]}
    """
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in ("_target_", "_meta_", "_desc_"):
                    visit(f"{prefix}#{key}" if prefix else key, item)
        elif isinstance(value, list) and any(isinstance(item, (dict, str)) for item in value):
            for i, item in enumerate(value):
                visit(f"{prefix}#{i}", item)
        elif not is_formula(value):
            flat[prefix] = value

    visit("", config)
    return flat
