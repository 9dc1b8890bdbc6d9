"""Scans that cannot be used are skipped and listed in a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ignite.engine import Events
from monai.engines import Workflow

from monai_diffae.data.cached import CachedCases
from monai_diffae.data.failures import Failure, write_failures
from monai_diffae.engines.trainer import ResumableTrainer, TrainingEvents
from monai_diffae.errors import counted

logger = logging.getLogger(__name__)


class BadScans:
    """Ignite handler: before an engine runs, read all scans and list those that cannot be used in ``failures.csv``.

    Args:
        directory: the run's folder.
        datasets: the data sets whose scans are read.
        failures: failures from listing the cohort.
        enabled: False on ranks other than 0.
    """

    def __init__(
        self,
        directory: str | Path,
        datasets: Sequence[CachedCases],
        failures: Sequence[Failure] = (),
        enabled: bool = True,
    ) -> None:
        self.path = Path(directory) / "failures.csv"
        self.datasets = list(datasets)
        self.failures = list(failures)
        self.enabled = enabled

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer or an evaluator."""
        is_trainer = isinstance(engine, ResumableTrainer)
        engine.add_event_handler(TrainingEvents.BEFORE_RUN if is_trainer else Events.STARTED, self)

    def __call__(self) -> None:
        """Read every scan, and write the table. It is deleted if no scan failed."""
        failures = self.failures + [f for dataset in self.datasets for f in dataset.prepare().failures]
        if not self.enabled:
            return
        write_failures(self.path, failures)
        if failures:
            cases = counted(len(failures), "case")
            logger.warning("%s cannot be used; %s lists the reasons", cases, self.path.name)
