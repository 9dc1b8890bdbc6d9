"""The training curve as a table and a picture."""

# tested in tests/bundles/test_resume.py

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
        self._num_written = 0

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer, and with the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(TrainingEvents.STATISTICS, self._add_training)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        engine.add_event_handler(TrainingEvents.SAVING, self._write_table)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._add_validation)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda _: self.write())
        self._trainer = engine

    def _start(self, engine: Workflow) -> None:
        table = self.directory / TABLE
        if engine.state.iteration and table.is_file():
            try:
                before = pd.read_csv(table, float_precision="round_trip")
                rows = before[before["step"] <= engine.state.iteration].to_dict("records")
            except (ValueError, KeyError, TypeError):  # pandas' errors are ValueErrors
                logger.warning("%s cannot be read, and is replaced", table.name)
                return
            self.rows = [{str(k): v for k, v in row.items() if not pd.isna(v)} for row in rows]

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
        """Write table and picture."""
        if not self.rows:
            return
        self._write_table()
        frame = pd.DataFrame(self.rows)
        write_atomic(self.directory / PICTURE, lambda path: draw_curves(frame, path))

    def _write_table(self) -> None:
        table = self.directory / TABLE
        if self.rows and not (len(self.rows) == self._num_written and table.is_file()):
            frame = pd.DataFrame(self.rows)
            write_atomic(table, lambda path: frame.to_csv(path, index=False))
            self._num_written = len(self.rows)
