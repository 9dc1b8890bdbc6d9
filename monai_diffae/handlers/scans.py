"""Handlers about the scans of a training: those that cannot be used, twins, and the scale of latents."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ignite.engine import Events
from monai.engines import Workflow

from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case, spread
from monai_diffae.data.cohort_split import SplitCohort
from monai_diffae.data.inspection.twins import find_identical, report_twins
from monai_diffae.data.progress import Failure, count_by_label, write_failures
from monai_diffae.engines.precision import autocast
from monai_diffae.engines.trainer import ResumableTrainer, TrainingEvents
from monai_diffae.errors import counted
from monai_diffae.networks import FirstStage

logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class BadScans:
    """Ignite handler: before an engine runs, read all scans and list those that cannot be used in ``failures.csv``.

    Warnings name identical files in training and validation, and those with different labels. Training is not refused,
    as labels play no part in it, and a training that was begun must be able to resume.
    """

    directory: str | Path
    datasets: Sequence[CachedCases]
    failures: Sequence[Failure] = ()  #: those from listing the cohort
    rank: int = 0  #: number of this process; the others read their share, and write nothing
    cases: Sequence[Case] = ()
    #: the cohort, with more failures and all cases
    cohort: SplitCohort = SplitCohort([])  # noqa: RUF009 - nobody changes it
    enabled: bool = True  #: whether it writes, in configurations of earlier versions

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer or an evaluator."""
        event = TrainingEvents.BEFORE_RUN if isinstance(engine, ResumableTrainer) else Events.STARTED
        engine.add_event_handler(event, self)

    def __call__(self) -> None:
        """Read every scan, and write the table. It is deleted if no scan failed."""
        path = Path(self.directory) / "failures.csv"
        cached = [dataset for dataset in self.datasets if isinstance(dataset, CachedCases)]  # not those of MONAI
        for dataset in cached:
            dataset.failures_name = path.name
        cases = self.cases or self.cohort.cases
        failures = [*self.failures, *self.cohort.failures] + [
            f for dataset in cached for f in dataset.prepare().failures
        ]
        if self.rank or not self.enabled:
            return
        write_failures(path, failures)
        if failures:
            read = {item.get("id") for dataset in cached for item in dataset.data}
            by_label = count_by_label([f.case_id for f in failures], [case for case in cases if case.id in read])
            logger.warning(
                "%s cannot be used%s; %s lists them with the reasons",
                counted(len(failures), "case"),
                by_label,
                path.name,
            )
        contents = dict(content for dataset in cached for content in dataset.contents)
        groups = find_identical(cases, [contents.get(case.id, "") for case in cases])
        for line in report_twins(cases, groups).problems():
            logger.warning("%s", line)


@dataclass(eq=False, repr=False)
class LatentScale:
    """Ignite handler for the evaluator: after a validation, measure the scale of the averaged network's latents.

    The scale is stored in both networks, and thus in their checkpoints. It is measured on ``num_images`` whole training
    images without augmentation, spread over the set.
    """

    averaged: FirstStage
    network: FirstStage
    dataset: CachedCases
    num_images: int = 32

    def attach(self, engine: Workflow) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Measure the scale, in the evaluator's precision."""
        images = self.dataset.without_augmentation()
        with autocast(engine.state.device, engine.dtype):  # type: ignore[attr-defined]
            self.averaged.measure(images[position]["image"] for position in spread(len(images), self.num_images))
        for buffer, measured in zip(self.network.buffers(), self.averaged.buffers(), strict=True):
            buffer.copy_(measured)
