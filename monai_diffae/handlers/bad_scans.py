"""Scans that cannot be used are skipped and listed in a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ignite.engine import Events
from monai.engines import Workflow

from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure, count_by_label, write_failures
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
        cases: the cohort, with the labels by which the failures are counted.
    """

    def __init__(
        self,
        directory: str | Path,
        datasets: Sequence[CachedCases],
        failures: Sequence[Failure] = (),
        enabled: bool = True,
        cases: Sequence[Case] = (),
    ) -> None:
        self.path = Path(directory) / "failures.csv"
        self.datasets = list(datasets)
        self.failures = list(failures)
        self.enabled, self.cases = enabled, cases

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer or an evaluator."""
        is_trainer = isinstance(engine, ResumableTrainer)
        engine.add_event_handler(TrainingEvents.BEFORE_RUN if is_trainer else Events.STARTED, self)

    def __call__(self) -> None:
        """Read every scan, and write the table. It is deleted if no scan failed."""
        for dataset in self.datasets:
            dataset.failures_name = self.path.name
        failures = self.failures + [f for dataset in self.datasets for f in dataset.prepare().failures]
        if not self.enabled:
            return
        write_failures(self.path, failures)
        if failures:
            read = {item.get("id") for dataset in self.datasets for item in dataset.data}
            by_label = count_by_label([f.case_id for f in failures], [case for case in self.cases if case.id in read])
            count, name = counted(len(failures), "case"), self.path.name
            logger.warning("%s cannot be used%s; %s lists them with the reasons", count, by_label, name)
