"""Training on the server: continues the bundle's training on all images of the datastore."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from annotated_types import Ge, Gt, Lt
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from monai_diffae.apps.command import command
from monai_diffae.apps.embedding.index import EmbeddingIndex
from monai_diffae.apps.settings import Seed, Training
from monai_diffae.apps.training import train_with_callbacks
from monai_diffae.bundle import TrainedBundle, load_bundle, publish
from monai_diffae.data.atomic import ProcessLock, write_csv, write_json
from monai_diffae.errors import BusyError, CohortError, ConfigError, DivergenceError, counted
from monai_diffae.handlers.progress import Statistics
from monai_diffae.label.datastore import image_paths
from monai_diffae.label.label_app import AppFolder
from monai_diffae.label.tasks import ServedModel, check_keys, option_names, shown_options

logger = logging.getLogger(__name__)

_REPORT_EVERY_S = 5.0
# what clients send to MONAI Label's own trainers, and what has no meaning here or is up to the server
_IGNORED = frozenset(
    {
        "name",
        "pretrained",
        "device",
        "multi_gpu",
        "gpus",
        "dataset",
        "dataloader",
        "run_id",
        "model_filename",
        "tracking_uri",
    }
)
IS_RUNNING = "train: a training is running; wait for it, or stop it with DELETE /train/"


@command
def training_options(
    *,
    max_epochs: Annotated[int, Ge(1)] = 10,
    learning_rate: Annotated[float, Gt(0)] | None = None,
    seed: Seed = 0,
    mlflow: bool = True,
    val_split: Annotated[float, Gt(0), Lt(1)] | None = None,
    train_batch_size: Annotated[int, Ge(1)] | None = None,
    val_batch_size: Annotated[int, Ge(1)] | None = None,
    early_stop_patience: int | None = None,
    tracking: Literal["mlflow", "None", "none", ""] | None = None,
    tracking_experiment_name: str | None = None,
    tracking_run_name: str | None = None,
) -> dict[str, Any]:
    """The configuration's values that clients may set; from ``val_split`` on, they have MONAI Label's names."""
    values = {
        "max_epochs": max_epochs,
        "seed": seed,
        "mlflow": mlflow and tracking in (None, "mlflow"),
        "learning_rate": learning_rate,
        "val_fraction": val_split,
        "batch_size": train_batch_size,
        "val_batch_size": val_batch_size,
        "experiment_name": tracking_experiment_name or None,
        "run_name": tracking_run_name or None,
    }
    given: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
    if early_stop_patience is not None:  # -1: never
        given["early_stop_patience"] = early_stop_patience if early_stop_patience > 0 else None
    return given


class DiffAETrainer(TrainTask):
    """The trainer ``diffae``: continues the bundle's training on all images of the datastore, labelled or not.

    It trains in a folder of its own and replaces the bundle's model at the end: one that fails or is stopped changes
    nothing.
    """

    def __init__(self, served: ServedModel, folder: AppFolder) -> None:
        super().__init__("Continues the training of the diffusion autoencoder on all images, labelled or not")
        self._served, self._folder = served, folder
        self._status_file = folder.training / "status.json"
        self._reported_at = 0.0

    def config(self) -> dict[str, Any]:
        """The options that clients show."""
        return shown_options(training_options)

    def stats(self) -> dict[str, Any]:
        """How far the training is, or how the last one ended: ``epoch``, ``total_epochs``, ``loss``, ``total_time``."""
        try:
            status: dict[str, Any] = json.loads(self._status_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if "total_time" in status or self._is_running():
            return status
        return {**status, "total_time": "stopped"}  # viewers show a bar as long as there is none

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, publish the new model, and return the numbers of images and the checksum of the new weights."""
        overrides = self.check(request)
        if ignored := sorted({*request, *(request.get("diffae") or {})} & _IGNORED):
            logger.info("these options change nothing here, and are ignored: %s", ", ".join(ignored))
        with self._lock():
            return self._train(overrides, datastore)

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the training's configuration that a request asks for; refuses what cannot be done."""
        values = {**request, **(request.get("diffae") or {})}  # OHIF sends the options in {"diffae": {...}}
        values.pop("diffae", None)
        names = option_names(training_options)
        check_keys({key: value for key, value in values.items() if key not in _IGNORED}, set(names))
        if values.get("pretrained") not in (None, True):
            raise ConfigError("pretrained: a training continues with the weights that are served; omit it")
        overrides = training_options(**{name: values[name] for name in names if values.get(name) is not None})
        if not self._folder.owns_its_bundle:
            raise ConfigError("train: the app uses a bundle outside its folder; make an app of a copy, without --refer")
        return overrides

    def _lock(self) -> ProcessLock:
        """The lock of the training, across the server and its jobs."""
        return ProcessLock(self._folder.training / ".lock", IS_RUNNING, timeout_s=0)

    def _is_running(self) -> bool:
        try:
            with self._lock():
                return False
        except BusyError:
            return True

    def _train(self, overrides: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        started = time.monotonic()
        work, bundle = self._folder.training / "run", self._served.folder
        shutil.rmtree(work, ignore_errors=True)
        paths, failed = image_paths(datastore)
        if not paths:
            raise CohortError("train: there is no image; add scans to the folder or the DICOMweb server")
        logger.info("training on %s", counted(len(paths), "image"))
        table = pd.DataFrame({"id": list(paths), "image": list(paths.values())})
        cohort = write_csv(work / "images.csv", table)
        write_json(self._status_file, {"epoch": 0, "total_epochs": overrides["max_epochs"], "images": len(paths)})
        fractions = split_fractions(len(paths), overrides.get("val_fraction", 0.1))
        values = {**overrides, **fractions, **self._tracking()}
        training = Training(overrides=values, device=self._served.device)
        try:
            train_with_callbacks(work / "bundle", cohort, start_from=bundle, training=training, report=self._report)
            sha256, num_unusable = self._encode_and_publish(work / "bundle", paths)
        finally:
            shutil.rmtree(work / "bundle" / "models", ignore_errors=True)  # curves and pictures stay until the next
        seconds = round(time.monotonic() - started, 1)
        num_failed = len(failed) + num_unusable
        total = {"epoch": overrides["max_epochs"], "total_epochs": overrides["max_epochs"], "total_time": seconds}
        write_json(self._status_file, {**total, "images": len(paths), "failed": num_failed, "model": sha256})
        logger.info(
            "training ended after %.0f s: the new model is in use, %d images could not be used", seconds, num_failed
        )
        return {"images": len(paths), "failed": num_failed, "seconds": seconds, "model": sha256}

    def _encode_and_publish(self, new: Path, paths: Mapping[str, str]) -> tuple[str, int]:
        """Encode all images, so that strategies need not wait, and publish; the checksum, and the unusable images."""
        trained, index = load_bundle(new, self._served.device), EmbeddingIndex(self._folder.index)
        index.update(trained, paths)
        cases = index.read(trained)
        if not cases.ids or not _makes_finite_images(trained, paths[cases.ids[0]]):
            raise DivergenceError("train: the new model has diverged (NaN), the old one stays; lower learning_rate")
        publish(new, self._served.folder)
        index.keep_only([trained])
        return trained.sha256, len(cases.failures)

    def _tracking(self) -> dict[str, Any]:
        if os.environ.get("MLFLOW_TRACKING_URI"):
            return {}
        from monai.utils import path_to_sqlite_uri

        return {"tracking_uri": path_to_sqlite_uri(str((self._folder.path / "mlflow.db").resolve()))}

    def _report(self, report: Statistics) -> None:
        """Write the state of the training, which :meth:`stats` reads in the server's process, and log it."""
        if time.monotonic() - self._reported_at < _REPORT_EVERY_S and report.step < report.num_steps:
            return
        self._reported_at = time.monotonic()
        write_json(
            self._status_file,
            {
                "epoch": report.epoch,
                "total_epochs": report.max_epochs,
                "step": report.step,
                "total_steps": report.num_steps,
                "loss": report.loss,
                "seconds_left": round(report.seconds_left),
            },
        )
        logger.info(
            "epoch %d of %d, loss %.4f, %.0f s left", report.epoch, report.max_epochs, report.loss, report.seconds_left
        )


def _makes_finite_images(trained: TrainedBundle, image: str) -> bool:
    try:
        return bool(trained.open(image).reconstruct().isfinite().all())
    except ConfigError:  # the inferer refuses values that are not finite
        return False


def split_fractions(num_images: int, val_fraction: float = 0.1) -> dict[str, float]:
    """The shares of images that are held out: at least three, with which anomalies are calibrated.

    Example:
        >>> [split_fractions(number)["val_fraction"] for number in (200, 10, 4)]
        [0.1, 0.3, 0.5]
    """
    return {"val_fraction": max(val_fraction, min(0.5, 3 / num_images)), "test_fraction": 0.0}
