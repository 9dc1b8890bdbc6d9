"""The training curve as a table and a picture."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
from ignite.engine import Events
from monai.engines import Workflow

from monai_diffae.data.atomic import write_atomic
from monai_diffae.engines.trainer import TrainingEvents
from monai_diffae.pictures.curves import draw_curves

logger = logging.getLogger(__name__)

TABLE = "curves.csv"
PICTURE = "curves.png"


class TrainingCurves:
    """Ignite handler: write ``curves.csv`` (one row per report or validation) and ``curves.png``.

    They are written after each epoch and validation, and when a training is interrupted; the table also before each
    checkpoint, so that it has no holes after a kill. A resumed run keeps the rows up to the step at which it resumes.

    Args:
        directory: the folder of both files.
        evaluator: the evaluator whose metrics are written after each validation, as ``validation_<name>``.
    """

    def __init__(self, directory: str | Path, evaluator: Workflow | None = None) -> None:
        self.directory = Path(directory)
        self.evaluator = evaluator
        self.rows: list[dict[str, Any]] = []
        self._num_written = self._num_drawn = 0

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer, and with the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(TrainingEvents.STATISTICS, self._add_training)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_table)
        engine.add_event_handler(TrainingEvents.SAVING, self._write_table)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._add_validation)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda _: self.write())
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
        """Write table and picture, each if it lacks a row."""
        self._write_table()
        picture = self.directory / PICTURE
        if self.rows and not (len(self.rows) == self._num_drawn and picture.is_file()):
            frame = pd.DataFrame(self.rows)
            write_atomic(picture, lambda path: draw_curves(frame, path))
            self._num_drawn = len(self.rows)

    def _write_table(self) -> None:
        table = self.directory / TABLE
        if self.rows and not (len(self.rows) == self._num_written and table.is_file()):
            frame = pd.DataFrame(self.rows)
            write_atomic(table, lambda path: frame.to_csv(path, index=False))
            self._num_written = len(self.rows)


def _number(text: str) -> float:
    """A number as Python wrote it, to the last bit; pandas may round it."""
    return int(text) if text.isdecimal() else float(text)
