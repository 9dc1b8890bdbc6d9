"""A warning about twins: scans that are identical or nearly so, in training and validation, or differently labelled."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from monai.engines import Workflow

from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case
from monai_diffae.data.twin_reports import report_twins
from monai_diffae.data.twins import find_twins
from monai_diffae.engines.trainer import TrainingEvents

logger = logging.getLogger(__name__)


class TwinScans:
    """Ignite handler: before a training, warn of twins of different patients.

    Twins of training and validation make the validation too optimistic, but training is not refused: labels play no
    part in it, near twins may be a false alarm, and a training that was begun must be able to resume.

    Args:
        cases: the cohort, with splits and labels.
        datasets: the data sets whose images are compared; those that keep no fingerprints are not.
        enabled: False on ranks other than 0.
    """

    def __init__(self, cases: Sequence[Case], datasets: Sequence[CachedCases], enabled: bool = True) -> None:
        self.cases = {case.id: case for case in cases}
        self.datasets = list(datasets)
        self.enabled = enabled

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        if self.enabled:
            engine.add_event_handler(TrainingEvents.BEFORE_RUN, self)

    def __call__(self) -> None:
        """Compare all images, and log a warning for twins in different splits and with different labels."""
        kept = [dataset.prepare() for dataset in self.datasets if dataset.fingerprints is not None]
        fingerprints = [each for dataset in kept for each in dataset.fingerprints or ()]
        cases = [self.cases[str(item["id"])] for dataset in kept for item in dataset.items]
        groups = find_twins(fingerprints, [case.patient for case in cases])
        for line in report_twins(cases, groups).problems():
            logger.warning("%s", line)
