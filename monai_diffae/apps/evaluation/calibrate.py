"""The command ``calibrate``: prepare a bundle for anomaly maps and scores with held-out normal cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result, failed_cases
from monai_diffae.apps.settings import Choice, Reading, Seed, Split, UnbatchedRun
from monai_diffae.errors import counted

_FAILURES = "calibration_failures.csv"


@command
def calibrate(
    bundle: Path,
    cohort: Path,
    *,
    split: Split | None = None,
    limit: Annotated[int, Ge(2)] = 64,
    noise_level: Annotated[float, Gt(0), Le(1)] = 0.3,
    draws: Annotated[int, Ge(1)] = 8,
    seed: Seed = 0,
    reading: Reading = Reading(),
    run: UnbatchedRun = UnbatchedRun(),
) -> Result:
    """Calibrate anomaly maps and scores with held-out cases, and store the calibration in the bundle.

    Training does this at its end with validation cases; this command can use more cases, or normal ones only. It
    replaces ``models/anomaly.safetensors``, which holds no images: the mean squared residual of each voxel, the scores
    of the cases, and quantiles.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan, with normal cases that the bundle was not trained on.
        split: Use the cases of this split; by default ``val`` if the cohort is the training's or has splits, else all.
        limit: Use at most this many scans, drawn at random from as many patients as possible.
        noise_level: Noise that is added to images, as a share of all timesteps; more finds larger anomalies.
        draws: Number of noisy versions of each image, whose reconstructions are averaged.
        seed: Random seed of the noise and of the choice of scans.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The file ``models/anomaly.safetensors``; ``num_cases`` (slices of a volume count as one each), their
        ``num_patients``, ``lowest_p_value`` (of a scan that is more unusual than all of them), and ``num_failed``.

    Raises:
        ConfigError: an argument is out of range, or the bundle is not trained.
        CohortError: there are no usable cases of two patients.

    Example:
        >>> calibrate("bundle", "cohort.csv", limit=1)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: limit: 1 is below 2
    """
    from monai_diffae.apps.evaluation.calibration import draw_scans, fit_or_load
    from monai_diffae.apps.session import Session
    from monai_diffae.bundle import AnomalySettings

    session = Session.open(bundle, cohort, reading=reading, run=run.batched)
    if split is None and session.split_origin != "drawn":
        split = "val"
    cases = draw_scans(session.choose(Choice(split=split)), limit, seed)
    settings = AnomalySettings(noise_levels=(noise_level,), draws=draws, seed=seed)
    path, detector, skipped = fit_or_load(session, cases, settings, bundle / _FAILURES, overwrite=run.overwrite)
    figures = {
        "num_cases": len(detector.scores), "num_patients": detector.made_from["num_patients"],
        "lowest_p_value": 1 / (1 + len(detector.scan_scores)), "num_failed": detector.made_from["num_failed"],
    }  # fmt: skip
    patients = f"{counted(figures['num_cases'], 'case')} of {counted(figures['num_patients'], 'patient')}"
    notes = [f"{patients}; the lowest p-value is {figures['lowest_p_value']:.2g}"]
    incomplete = failed_cases(figures["num_failed"], figures["num_cases"], _FAILURES)
    return Result(path, figures, notes, incomplete, skipped=skipped)
