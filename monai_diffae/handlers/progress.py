"""The figures of a training: measured every few steps, shown as a bar or lines, and kept as a table and a picture."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import pandas as pd
import torch
from ignite.engine import Events
from monai.engines import Workflow
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.engines.precision import send
from monai_diffae.engines.trainer import TrainingEvents
from monai_diffae.handlers.validation import is_of_probes
from monai_diffae.latents.representation import warn_if_unused
from monai_diffae.pictures.charts import draw_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

TABLE, PICTURE = "curves.csv", "curves.png"
_PLAIN_INTERVAL_S = 20.0  # between two lines without a terminal


@dataclass(frozen=True)
class Statistics:
    """How far a training is, and the figures of the steps since the last report."""

    epoch: int  #: the current epoch, from 1
    max_epochs: int  #: the number of epochs
    step: int  #: training steps (batches) since the training began
    num_steps: int  #: steps of the whole training
    images_seen: int  #: images shown to the network since the training began, on all ranks
    images_per_s: float  #: speed of reading and training, without validation
    loss: float  #: mean over the reported steps and all ranks
    learning_rate: float  #: current learning rate
    seconds_left: float  #: time to the end of the training at this speed, without validation


@dataclass(eq=False, repr=False)
class RunningStatistics:
    """Ignite handler: every ``every`` steps, store :class:`Statistics` in ``engine.state.statistics``.

    The loss is read from the device only then, so that a GPU does not have to wait at each step.
    """

    optimizer: torch.optim.Optimizer
    every: int = 20
    images_per_step: int = field(default=0, kw_only=True)  #: ignored: earlier configurations give it
    _step_started = 0.0

    def attach(self, engine: Workflow) -> None:
        """Register with a :class:`~monai_diffae.engines.ResumableTrainer`.

        What is not reported yet is in ``engine.state.unreported``, which checkpoints keep.
        """
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_step)

    def _start(self, engine: Workflow) -> None:
        if not engine.state.iteration or getattr(engine.state, "unreported", None) is None:
            engine.state.unreported = _nothing()

    def _start_step(self) -> None:
        self._step_started = time.perf_counter()

    def _end_step(self, engine: Workflow) -> None:
        state, sums = engine.state, engine.state.unreported
        loss = state.output[0]["loss"]
        sums["loss"] = send(sums["loss"], loss.device) + loss
        sums["steps"] += 1
        is_last_of_epoch = state.iteration % state.epoch_length == 0
        is_due = state.iteration % self.every == 0 or is_last_of_epoch or engine.ends_after_step  # type: ignore[attr-defined]
        # all ranks report at the same steps; this waits for the GPU, so it comes before the clock
        mean_loss = float(idist.all_reduce(sums["loss"])) / (sums["steps"] * idist.get_world_size()) if is_due else 0.0
        sums["seconds"] += time.perf_counter() - self._step_started
        if not is_due:
            return
        images_per_step = engine.data_loader.batch_sampler.batch_size * idist.get_world_size()  # type: ignore[union-attr]
        steps_per_s = sums["steps"] / max(sums["seconds"], 1e-9)
        num_steps = state.max_epochs * state.epoch_length
        state.statistics = Statistics(
            state.epoch,
            state.max_epochs,
            state.iteration,
            num_steps,
            images_seen=state.iteration * images_per_step,
            images_per_s=steps_per_s * images_per_step,
            loss=mean_loss,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds_left=(num_steps - state.iteration) / steps_per_s,
        )
        state.unreported = _nothing()
        engine.fire_event(TrainingEvents.STATISTICS)


def _nothing() -> dict[str, Any]:
    return {"seconds": 0.0, "steps": 0, "loss": torch.zeros(())}


class TrainingProgress:
    """Ignite handler: show images seen, loss, speed, time left, and the metrics of each validation but those of probes.

    At the end, a warning is logged if the decoder hardly uses z_sem.
    """

    def __init__(self, evaluator: Workflow) -> None:
        self.evaluator = evaluator
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._last_line = 0.0

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer and the evaluator; if the package's logger is quiet, only for the warning."""
        engine.add_event_handler(Events.COMPLETED, self._end)
        if logging.getLogger("monai_diffae").level >= logging.WARNING:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(TrainingEvents.STATISTICS, self._show)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda _: self._stop())
        self.evaluator.add_event_handler(Events.COMPLETED, self._show_validation)

    def _start(self, engine: Workflow) -> None:
        state = engine.state
        if self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), TextColumn("{task.percentage:.0f} %  {task.fields[text]}"))
            self._bar = Progress(*columns, console=self.console)
            total = state.max_epochs * state.epoch_length
            self._task = self._bar.add_task("", total=total, completed=state.iteration, text="")
            self._bar.start()

    def _show(self, engine: Workflow) -> None:
        text = describe(engine.state.statistics)
        if self._bar is not None:
            self._bar.update(self._task, completed=engine.state.iteration, text=text)
        elif time.monotonic() - self._last_line > _PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            self.console.print(text, highlight=False, soft_wrap=True)

    def _show_validation(self, evaluator: Workflow) -> None:
        undefined = "not defined, as there is no other image"  # of z_sem_usage, the only metric that can be NaN
        metrics = "  ".join(
            f"{name} {undefined if math.isnan(value) else format(value, '.4g')}"
            for name, value in evaluator.state.metrics.items()
            if not is_of_probes(name)
        )
        self.console.print(f"validation: {metrics}", highlight=False, soft_wrap=True)

    def _end(self, engine: Workflow) -> None:
        self._stop()
        if "z_sem_usage" in self.evaluator.state.metrics:
            warn_if_unused(self.evaluator.state.metrics["z_sem_usage"])

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe(statistics: Statistics) -> str:
    """One line about the state of a training."""
    left = str(timedelta(seconds=round(statistics.seconds_left))).removeprefix("0:").removeprefix("0")
    return (
        f"{statistics.images_seen:,} images  loss {statistics.loss:.4f}  "
        f"{statistics.images_per_s:.1f} images/s  {left} left"
    )


class TrainingCurves:
    """Ignite handler: write ``curves.csv`` (one row per report or validation) and ``curves.png``.

    They are written after each epoch and validation, and when a training is interrupted; the table also before each
    checkpoint, so that it has no holes after a kill. ``curves.svg`` is written at the end of a training. A resumed run
    keeps the rows up to the step at which it resumes. Metrics of the evaluator are ``validation_<name>``.
    """

    def __init__(self, directory: str | Path, evaluator: Workflow) -> None:
        self.directory = Path(directory)
        self.evaluator = evaluator
        self.rows: list[dict[str, Any]] = []
        self._num_drawn = 0
        self._figure: Figure | None = None

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer, and with the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(TrainingEvents.STATISTICS, self._add_training)
        engine.add_event_handler(Events.EPOCH_COMPLETED | TrainingEvents.SAVING, self._write_table)
        self.evaluator.add_event_handler(Events.COMPLETED, self._add_validation)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda _: self.write())
        engine.add_event_handler(Events.COMPLETED, self._write_vectors)  # takes as long as the PNG, so only at the end
        self._trainer = engine

    def _start(self, engine: Workflow) -> None:
        # now, so that it comes after the validation, whose row is in the same picture
        if not engine.has_event_handler(self.write, Events.EPOCH_COMPLETED):  # a trainer can run several times
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        table = self.directory / TABLE
        if engine.state.iteration and table.is_file():
            try:
                before = pd.read_csv(table, dtype=str).to_dict("records")
                rows = [{str(k): _number(v) for k, v in row.items() if not pd.isna(v)} for row in before]
                self.rows = [row for row in rows if row["step"] <= engine.state.iteration]
            except (ValueError, KeyError, TypeError):  # pandas' errors are ValueErrors
                logger.warning("%s cannot be read, and is replaced", table.name)

    def _add_training(self, engine: Workflow) -> None:
        s = engine.state.statistics
        self.rows.append(
            {
                "step": s.step,
                "images_seen": s.images_seen,
                "loss": s.loss,
                "images_per_s": round(s.images_per_s, 2),
                "learning_rate": s.learning_rate,
            }
        )

    def _add_validation(self, evaluator: Workflow) -> None:
        metrics = {f"validation_{name}": value for name, value in evaluator.state.metrics.items()}
        s = self._trainer.state.statistics
        self.rows.append({"step": s.step, "images_seen": s.images_seen, **metrics})
        self.write()

    def write(self) -> None:
        """Write the table, and the picture if it lacks a row."""
        self._write_table()
        if len(self.rows) != self._num_drawn:
            self._figure = draw_curves(pd.DataFrame(self.rows))
            write_atomic(self.directory / PICTURE, self._figure.savefig)
            self._num_drawn = len(self.rows)

    def _write_vectors(self) -> None:
        if self._figure is not None:
            write_atomic((self.directory / PICTURE).with_suffix(".svg"), self._figure.savefig)

    def _write_table(self) -> None:
        if self.rows:
            write_csv(self.directory / TABLE, pd.DataFrame(self.rows))


def _number(text: str) -> float:
    """A number as Python wrote it, to the last bit; pandas may round it."""
    return int(text) if text.isdecimal() else float(text)
