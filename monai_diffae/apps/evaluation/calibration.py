"""The work of ``calibrate``: read held-out cases, and write the bundle's anomaly detector."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_diffae.apps.results import checksum_of
from monai_diffae.apps.session import Session
from monai_diffae.bundle.anomaly import AnomalyDetector, AnomalySettings, fit_detector
from monai_diffae.bundle.layout import ANOMALY, models_folder
from monai_diffae.data.cases import Case
from monai_diffae.data.progress import track
from monai_diffae.errors import counted

logger = logging.getLogger(__name__)


def calibrated(
    session: Session, cases: Sequence[Case], settings: AnomalySettings, failures: Path, *, overwrite: bool
) -> tuple[Path, AnomalyDetector, bool]:
    """Calibrate a bundle, unless it was calibrated with the same cases and settings.

    Args:
        session: the bundle and the cohort.
        cases: held-out cases.
        settings: how residuals become maps and scores.
        failures: the list of cases that cannot be read.
        overwrite: calibrate although this was done.

    Returns:
        The file, the detector, and whether it was there already.

    Raises:
        CohortError: there are no readable cases of two patients.
    """
    trained = session.trained
    path = models_folder(trained.folder) / ANOMALY
    made_from: dict[str, Any] = {
        "cohort": session.cohort.fingerprint,
        "cases": checksum_of([(case.id, case.patient) for case in cases]),
    }
    existing = None if overwrite else AnomalyDetector.load_if_usable(trained)
    if existing is not None and existing.settings == settings and made_from.items() <= existing.made_from.items():
        logger.info("%s is complete; nothing to do (overwrite replaces it)", path.name)
        return path, existing, True
    read = session.read(cases, failures.parent, failures.name)
    text = f"calibrating with {counted(len(read.cases), 'case')}"
    items = (read.dataset[i] for i in track(range(len(read.cases)), text))
    images = ((item["image"], item[session.encoder_key]) for item in items)
    made_from["num_patients"] = len({case.patient for case in read.cases})
    made_from["num_failed"] = len(read.failures)
    detector = fit_detector(trained, read.cases, images, settings, made_from)
    return detector.save(trained.folder), detector, False
