"""Tracking with MLflow: parameters, metrics, pictures and the configuration of a training."""

import itertools
import json
import logging
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ignite.engine import Engine, Events
from monai.engines import Workflow
from monai.handlers import MLFlowHandler

from monai_diffae.bundle.code import looks_like_path
from monai_diffae.bundle.config import SEPARATOR, is_formula
from monai_diffae.bundle.folders import copy_model
from monai_diffae.data.atomic import write_atomic
from monai_diffae.engines.trainer import TrainingEvents

logger = logging.getLogger(__name__)

RUN_ID = "mlflow_run_id"  # file with the run's id, so that a resumed training continues its run
# Values that may name a patient, a file or a folder are never tracked.
_PRIVATE_KEYS = ("_meta_", "dataset_dir", "output_dir", "bundle_root", "patient_pattern", "tracking_uri", "embeddings")
_PACKAGES = ("monai-diffae", "monai", "torch", "pytorch-ignite", "numpy", "mlflow")
_SUMMARIES = ("curves.png", "curves.csv", "pictures/latest.png")
_MOST_PARAMETERS = 100  # in one batch
_GROUPS = {"low_of_probe_": "probe_low", "high_of_probe_": "probe_high", "probe_": "probe", "neighbors_": "neighbors"}


@dataclass(eq=False, repr=False)
class MLflowTracking(MLFlowHandler):
    """MONAI's MLFlowHandler for trainings that resume, with data that stay private, on servers that may fail.

    Parameters have the names of the configuration's keys; values that may name a patient, file or folder are omitted.
    The first failure is logged and ends the tracking, but not the training.
    """

    # MONAI's __init__ connects to the server, whose failure would end the training, so `start` calls it.
    output_dir: Path  #: the run's folder; it has the artifacts, and the run's id for a resumed training
    run_config: dict[str, Any]  #: the configuration of the run, not evaluated
    evaluator: Workflow  #: the evaluator whose metrics are logged after each validation
    tracking_uri: str | None = None  #: MLflow server or database; None: see :func:`default_tracking_uri`
    experiment_name: str = "monai_diffae"  #: MLflow experiment
    run_name: str | None = None  #: MLflow run; None: ``model`` and the size of its images
    model: str = "model"  #: the kind of model, such as ``diffae_2d``
    #: how many scans, patients and cases there are, for tags such as ``num_scans``
    counts: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)  #: further properties, such as the data's fingerprint
    with_model: bool = False  #: log the files of the model at the end
    enabled: bool = True  #: False: track nothing
    cur_run: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.output_dir, size = Path(self.output_dir), self.run_config.get("image_size")
        self.config = without_paths(self.run_config)
        self.tracking_uri = self.tracking_uri or default_tracking_uri(self.output_dir)
        self.run_name = self.run_name or " ".join([self.model, *(["x".join(map(str, size))] if size else [])])
        numbers = {f"num_{name}": number for name, number in self.counts.items()}
        self.tags = {"model": self.model, **numbers, **self.tags}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, and with the evaluator."""
        if not self.enabled:
            return
        self._trainer: Any = engine
        engine.add_event_handler(Events.STARTED, lambda: self._try(lambda: self.start(engine)))
        engine.add_event_handler(TrainingEvents.STATISTICS, lambda: self._try(self._log_training))
        engine.add_event_handler(Events.COMPLETED, lambda: self._try(self.complete))
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)
        self.evaluator.add_event_handler(Events.COMPLETED, lambda: self._try(self._log_validation))

    def start(self, engine: Engine) -> None:
        """Start or continue the run, and log parameters, tags and the configuration."""
        from mlflow.entities import RunTag

        client = tracking_client(self.tracking_uri, self.output_dir)
        super().__init__(
            self.tracking_uri,
            experiment_name=self.experiment_name,
            run_name=self.run_name,
            artifacts=[self.output_dir / name for name in _SUMMARIES],
        )
        self.client = client  # MONAI's prefers MLFLOW_TRACKING_URI to the argument
        self.experiment_name = self._experiment_here(self.experiment_name)
        self._set_experiment()
        self.cur_run = self._resumed_run()
        if self.cur_run is None:
            experiment: Any = self.experiment
            self.cur_run = self.client.create_run(experiment.experiment_id, run_name=self.run_name)
            write_atomic(self.output_dir / RUN_ID, lambda path: path.write_text(self._run_id))
        # MLflow's names may have '/' but not '#'. The trainer's max_epochs is used if the configuration's is a formula.
        config = {"max_epochs": engine.state.max_epochs, **flat_parameters(self.config)}
        parameters = {key.replace("#", "/"): str(value)[:500] for key, value in config.items()}
        self._delete_exist_param_in_dict(parameters)
        items = list(parameters.items())
        for first in range(0, len(items), _MOST_PARAMETERS):
            self._log_params(dict(items[first : first + _MOST_PARAMETERS]))
        versions = {f"version.{package}": version(package) for package in _PACKAGES}
        tags = {"python": platform.python_version(), **versions, **self.tags}
        self.client.log_batch(self._run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
        self.client.log_text(self._run_id, json.dumps(self.config, indent=2), "config.json")

    def complete(self) -> None:
        """Log the model's files if it is asked for, and close the run."""
        if self.with_model:
            with tempfile.TemporaryDirectory() as folder:
                copy_model(self.output_dir, Path(folder))
                self.client.log_artifacts(self._run_id, folder, "bundle")
        self._end("FINISHED")

    @property
    def _run_id(self) -> str:
        return str(self.cur_run.info.run_id)

    def _try(self, action: Callable[[], None]) -> None:
        if not self.enabled:
            return
        try:
            action()
        except Exception as error:  # whatever a tracking server does, training continues
            self.enabled = False
            logger.warning("MLflow tracking failed and is off for the rest of this run: %s", reason(error))

    def _experiment_here(self, name: str) -> str:
        """The experiment of this name; in a moved or copied folder another one, as MLflow stores absolute paths."""
        for number in itertools.count(2):
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None or not is_elsewhere(experiment.artifact_location, self.tracking_uri, self.output_dir):
                break
            name = f"{self.experiment_name} {number}"
        return name

    def _resumed_run(self) -> Any:
        id_file = self.output_dir / RUN_ID
        if self._trainer.state.iteration and id_file.is_file():
            with suppress(Exception):  # the run is in another database
                run = self.client.get_run(id_file.read_text().strip())
                if not is_elsewhere(run.info.artifact_uri, self.tracking_uri, self.output_dir):
                    self.client.update_run(run.info.run_id, status="RUNNING")
                    return run
        return None

    def _log_training(self) -> None:
        names = ("loss", "images_per_s", "images_seen", "learning_rate")
        self._log({name: getattr(self._trainer.state.statistics, name) for name in names})

    def _log_validation(self) -> None:
        self._log({f"validation_{name}": float(value) for name, value in self.evaluator.state.metrics.items()})
        step = self._trainer.state.iteration
        picture = self.output_dir / "pictures" / f"step_{step:07d}.png"
        if picture.is_file():
            from PIL import Image

            with Image.open(picture) as image:
                self.client.log_image(self._run_id, image, key="reconstructions", step=step, synchronous=True)

    def _log(self, metrics: dict[str, float]) -> None:
        named = {tracked_name(name): value for name, value in metrics.items()}
        self._log_metrics(named, self._trainer.state.iteration)

    def _end(self, status: str) -> None:
        """Log what shows the whole training, and close the run."""
        super().complete()
        page = f"/#/experiments/{self.cur_run.info.experiment_id}?workflowType=machine_learning"
        self.run_finish_status = status
        self.close()
        is_own = str(self.tracking_uri).endswith("/mlflow.db")
        start = "; in the folder of the results, start: mlflow ui --backend-store-uri sqlite:///mlflow.db"
        logger.info("MLflow: the run '%s' is on its page %s%s", self.run_name, page, start if is_own else "")

    def _fail(self, engine: Workflow, error: BaseException) -> None:
        if self.cur_run is not None:
            status = "KILLED" if isinstance(error, (SystemExit, KeyboardInterrupt)) else "FAILED"
            self._try(lambda: self._end(status))


def tracked_name(column: str) -> str:
    """The name in MLflow of a column of ``curves.csv``; MLflow groups charts by what is before the ``/``."""
    name = column.removeprefix("validation_")
    group = "training" if name == column else "validation"
    for beginning, group_of_probes in _GROUPS.items():
        if group == "validation" and name.startswith(beginning):
            group, name = group_of_probes, name.removeprefix(beginning)
    return f"{group}/" + re.sub(r"[^\w\-. ]", "_", name)  # MLflow refuses other characters


# -- where it is stored ------------------------------------------------------------------------------------------------


def default_tracking_uri(output_dir: str | Path) -> str:
    """The environment variable ``MLFLOW_TRACKING_URI`` if it is set, else a SQLite database in the output folder."""
    from monai.utils import path_to_sqlite_uri

    return os.environ.get("MLFLOW_TRACKING_URI") or path_to_sqlite_uri(str(Path(output_dir).absolute() / "mlflow.db"))


def tracking_client(tracking_uri: str | None, output_dir: str | Path) -> Any:
    """MLflow's client of a training's database or server; None: see :func:`default_tracking_uri`."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default, retries take minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    for name in ("alembic", "mlflow.store"):  # they print migrations
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri or default_tracking_uri(output_dir))


def is_elsewhere(location: str, tracking_uri: str | None, output_dir: str | Path) -> bool:
    """Whether artifacts of a training's own database are not in its folder, as this was moved or copied."""
    from sqlalchemy import make_url

    uri, folder = tracking_uri or default_tracking_uri(output_dir), Path(output_dir).resolve()
    database = Path(make_url(uri).database or "") if uri.startswith("sqlite:") else folder
    path = Path(url2pathname(urlsplit(location).path)).resolve()
    return database.resolve().parent == folder and not path.is_relative_to(folder)


def reason(error: Exception) -> str:
    """What went wrong, in one line; without the path in the text of an OSError, which may name a patient."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200]


# -- what is sent ------------------------------------------------------------------------------------------------------


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration to show to others: without data items, and without anything that looks like a path."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: "(data)" if k == "data" and isinstance(v, list) else clean(v)
                for k, v in value.items()
                if SEPARATOR.split(k)[-1] not in _PRIVATE_KEYS or is_formula(v)
            }
        if isinstance(value, list):
            return [clean(item) for item in value]
        return "(path)" if isinstance(value, str) and looks_like_path(value) else value

    return {key: clean(value) for key, value in config.items() if key not in _PRIVATE_KEYS}


def flat_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The plain values of a configuration by their ids, without formulas and lists of components."""
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
