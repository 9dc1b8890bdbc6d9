"""The training of a bundle inside another program, such as a server, which watches it and can stop it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from monai.bundle import ConfigWorkflow
from monai.engines import Workflow

from monai_diffae.apps.settings import Training
from monai_diffae.apps.training.train import begin_from, run_training
from monai_diffae.engines.trainer import TrainingEvents
from monai_diffae.handlers.checkpoint import TrainingStopped


@dataclass(frozen=True)
class TrainingReport:
    """How far a training is.

    Attributes:
        epoch: the current epoch, from 1.
        max_epochs: the number of epochs.
        step: training steps since the training began.
        num_steps: steps of the whole training.
        loss: mean since the last report.
        seconds_left: time to the end of the training at the current speed, without validation.
    """

    epoch: int
    max_epochs: int
    step: int
    num_steps: int
    loss: float
    seconds_left: float


@dataclass(frozen=True)
class WatchedTraining:
    """The end of a watched training.

    Attributes:
        folder: the folder of the results.
        is_stopped: whether it was stopped; the same call resumes it.
    """

    folder: Path
    is_stopped: bool


def train_watched(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    start_from: str | os.PathLike[str] | None = None,
    training: Training = Training(),
    stop: threading.Event | None = None,
    report: Callable[[TrainingReport], object] | None = None,
) -> WatchedTraining:
    """Train a bundle as :func:`monai_diffae.train` does, inside a program that continues afterwards.

    It can run in any thread. In the main thread, SIGTERM and Ctrl-C save a checkpoint and then raise ``SystemExit``.
    The random numbers are those of torch's global generator, as in every training: if another thread draws from that
    generator meanwhile, the weights are not reproducible to the bit.

    Args:
        bundle: folder of a bundle.
        cohort: the data; None: the ``dataset_dir`` of the configuration.
        out: folder for the trained bundle; None: the bundle's own.
        start_from: trained bundle with whose weights a new training begins; the folder is made from it.
        training: how to train.
        stop: if it is set, the training saves a checkpoint at the next step and ends. While scans are read, it waits
            until they are read.
        report: called from the training's thread every ``report_every`` steps and at the end of each epoch; its errors
            end the training.

    Returns:
        The folder, and whether the training was stopped.

    Raises:
        ConfigError: a file does not exist, or a key or value cannot be used.
        CohortError: no usable case.
        MachineError: the training does not fit into memory, or the disk is full.
    """
    folders: list[Path] = []

    def watch(workflow: ConfigWorkflow) -> None:
        folders.append(Path(str(workflow.parser.get_parsed_content("output_dir"))))
        trainer = workflow.parser.get_parsed_content("train#trainer")
        workflow.parser.get_parsed_content("train#checkpoint").stop_requests.event = stop
        if report is not None:
            trainer.add_event_handler(TrainingEvents.STATISTICS, lambda engine: report(_report(engine)))

    paths = {"dataset_dir": cohort, "output_dir": out}
    given = {key: None if path is None else Path(path) for key, path in paths.items()}
    bundle = Path(bundle)
    if start_from is not None:
        bundle = begin_from(given.pop("output_dir", None) or bundle, Path(start_from))
    try:
        folder = run_training("train", bundle, training, given, watch).folder
    except TrainingStopped:
        return WatchedTraining(folders[0], is_stopped=True)
    return WatchedTraining(folder, is_stopped=False)


def _report(engine: Workflow) -> TrainingReport:
    state, statistics = engine.state, engine.state.statistics
    return TrainingReport(
        epoch=state.epoch,
        max_epochs=state.max_epochs,
        step=state.iteration,
        num_steps=state.max_epochs * state.epoch_length,
        loss=statistics.loss,
        seconds_left=statistics.seconds_left,
    )
