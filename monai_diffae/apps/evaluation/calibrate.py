"""The command ``calibrate``: prepare a bundle for anomaly maps and scores with held-out normal cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult, failed_cases
from monai_diffae.apps.settings import Reading, Seed, Split, UnbatchedRun
from monai_diffae.errors import counted

_FAILURES = "calibration_failures.csv"


@dataclass(frozen=True)
class CalibrateResult(CommandResult):
    """The result of :func:`calibrate`.

    Attributes:
        path: ``models/anomaly.safetensors`` of the bundle.
        num_cases: cases that were used; slices of a volume count as one each.
        num_patients: their patients.
        lowest_p_value: the p-value of a scan that is more unusual than all of them.
        num_failed: cases that could not be used, listed in ``calibration_failures.csv`` in the bundle.
        skipped: whether the bundle was calibrated with the same cases and arguments already.
    """

    path: Path
    num_cases: int
    num_patients: int
    lowest_p_value: float
    num_failed: int
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """The number of cases, the lowest p-value, then the file."""
        cases = f"{counted(self.num_cases, 'case')} of {counted(self.num_patients, 'patient')}"
        yield f"{cases}; the lowest p-value is {self.lowest_p_value:.2g}"
        yield str(self.path)

    def figures(self) -> dict[str, Any]:
        """All figures."""
        names = ("num_cases", "num_patients", "lowest_p_value", "num_failed")
        return {"path": str(self.path), **{name: getattr(self, name) for name in names}}

    @property
    def incomplete(self) -> str | None:
        """How many cases failed."""
        return failed_cases(self.num_failed, self.num_cases, _FAILURES)


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
) -> CalibrateResult:
    """Calibrate anomaly maps and scores with held-out cases, and store the calibration in the bundle.

    Training does this at its end with validation cases. Run this command to calibrate with more cases, or with a table
    of normal cases only. ``models/anomaly.safetensors`` is replaced, unless it was computed from the same cases and
    arguments. It holds no images: the mean squared residual of each voxel, the scores of the cases, and quantiles.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan, with normal cases that the bundle was not trained on.
        split: Use the cases of this split. By default, ``val`` if the cohort is that of the training or has splits,
            else all cases.
        limit: Use at most this many scans, drawn at random from as many patients as possible.
        noise_level: Noise that is added to images, as a share of all timesteps. A higher level finds larger anomalies,
            a lower one smaller ones.
        draws: Number of noisy versions of each image; their reconstructions are averaged.
        seed: Random seed of the noise and of the choice of scans.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The file, and the number of cases.

    Raises:
        ConfigError: an argument is out of range, or the bundle is not trained.
        CohortError: there are no usable cases of two patients.

    Example:
        >>> calibrate("bundle", "cohort.csv", limit=1)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: limit: 1 is below 2
    """
    from monai_diffae.apps.evaluation.calibration import calibrated, draw_scans
    from monai_diffae.apps.session import Session
    from monai_diffae.apps.settings import Choice
    from monai_diffae.bundle import AnomalySettings

    session = Session.open(bundle, cohort, reading=reading, run=run.batched)
    if split is None and session.split_origin != "drawn":
        split = "val"
    cases = draw_scans(session.choose(Choice(split=split)), limit, seed)
    settings = AnomalySettings(noise_levels=(noise_level,), draws=draws, seed=seed)
    path, detector, skipped = calibrated(session, cases, settings, bundle / _FAILURES, overwrite=run.overwrite)
    made_from, lowest = detector.made_from, 1 / (1 + len(detector.scan_scores))
    return CalibrateResult(
        path, len(detector.scores), made_from["num_patients"], lowest, made_from["num_failed"], skipped
    )
