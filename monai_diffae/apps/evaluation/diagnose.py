"""The command ``diagnose``: does the decoder use z_sem, how many dimensions are active, and how stable is it?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult, checksum_of, failed_cases, run_once
from monai_diffae.apps.settings import Reading, Run, Seed, ValidationChoice
from monai_diffae.errors import counted

logger = logging.getLogger(__name__)

_FAILURES = "diagnosis_failures.csv"


@dataclass(frozen=True)
class DiagnoseResult(CommandResult):
    """The result of :func:`diagnose`.

    Attributes:
        folder: holds ``noise_levels.csv``, ``stability.csv``, ``diagnosis.png`` and ``diagnosis.json``.
        z_sem_usage: the loss with another patient's z_sem divided by the loss with a case's own, over all noise levels.
        z_sem_usage_mean: the same with the mean z_sem of all other patients.
        dimensions: the fields of :class:`~monai_diffae.latents.statistics.ActiveDimensions`.
        noise_levels: the rows of ``noise_levels.csv``.
        stability: the rows of ``stability.csv``.
        num_cases: number of cases.
        num_failed: cases that could not be used, listed in ``diagnosis_failures.csv``.
        skipped: whether the results were complete already.
    """

    folder: Path
    z_sem_usage: float
    z_sem_usage_mean: float
    dimensions: dict[str, Any]
    noise_levels: list[dict[str, Any]]
    stability: list[dict[str, Any]]
    num_cases: int
    num_failed: int
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """The use of z_sem, its dimensions, one line per change of the image, then the folder."""
        yield (
            f"z_sem_usage {self.z_sem_usage:.3f}: loss with another patient's z_sem / own z_sem "
            f"(with the mean z_sem: {self.z_sem_usage_mean:.3f}; {counted(self.num_cases, 'case')})"
        )
        dims = self.dimensions
        yield (
            f"{dims['active']} of {dims['dims']} dimensions active, participation ratio "
            f"{dims['participation_ratio']:.1f}, {dims['dims_for_95_percent']} components for 95 % of the variance"
        )
        for row in self.stability:
            moved = f"z_sem moves {row['ratio']:.3f} of the way to another patient"
            yield f"{row['change']}: {moved}, rank-1 {row['rank_1']:.1%}"
        yield str(self.folder)

    def figures(self) -> dict[str, Any]:
        """All figures."""
        names = ("num_cases", "z_sem_usage", "z_sem_usage_mean", "dimensions", "noise_levels", "stability")
        return {name: getattr(self, name) for name in names}

    @property
    def incomplete(self) -> str | None:
        """How many cases failed."""
        return failed_cases(self.num_failed, self.num_cases, _FAILURES)


@command
def diagnose(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    num_levels: Annotated[int, Ge(1)] = 10,
    seed: Seed = 0,
    choice: ValidationChoice = ValidationChoice(),
    reading: Reading = Reading(),
    run: Run = Run(),
) -> DiagnoseResult:
    """Measure whether the decoder uses z_sem, how many dimensions of z_sem are active, and how stable it is.

    ``out/noise_levels.csv`` has one row per noise level: ``timestep``, ``log_snr``; the denoising loss with a case's
    own z_sem, with that of another patient, and with the mean of all other patients (``loss_own``, ``loss_other``,
    ``loss_mean``); the last two divided by the first (``z_sem_usage``, ``z_sem_usage_mean``); and ``own_is_better``,
    the share of cases with a lower loss for their own z_sem than for the other.

    ``out/stability.csv`` has one row per change of the image (flipped, noise, shifted, darker, brighter, another scan
    of the patient): ``ratio`` and ``ratio_90``, the median and 90th percentile of the distance that z_sem moves,
    divided by the median distance between patients; and ``rank_1``, the share of cases that are still closest to
    themselves. z_sem is normalised over these cases.

    ``out/diagnosis.png`` shows both tables. ``out/diagnosis.json`` has all figures, also the number of active
    dimensions.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        num_levels: Noise levels at which the loss is measured: the centres of this many equal intervals of timesteps.
        seed: Random seed of the noise, a function of the seed, the case's id and the level.
        choice: Which cases; training cases give too high a use of z_sem.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The figures.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, or ``out`` holds results made from other
            things.
        CohortError: there is no usable case, or all cases are of one patient.

    Example:
        >>> diagnose("bundle", "cohort.csv", "out", num_levels=0)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: num_levels: 0 is below 1
    """
    from monai_diffae.apps.evaluation.diagnosis import Diagnosis
    from monai_diffae.apps.session import Session
    from monai_diffae.latents.representation import warn_if_unused

    session = Session.open(bundle, cohort, reading=reading, run=run)
    cases = session.choose(choice)
    patients = checksum_of([case.patient for case in cases])
    made_from = session.made_from(cases, decodes=False, patients=patients, num_levels=num_levels, seed=seed)

    def make() -> Mapping[str, Any]:
        read = session.read(cases, out, _FAILURES, named=bool(choice.cases))
        return Diagnosis(session, read, num_levels, seed).run(out)

    results = [out / name for name in ("noise_levels.csv", "stability.csv", "diagnosis.png")]
    figures, skipped = run_once(out / "diagnosis.json", results, made_from, make, overwrite=run.overwrite)
    warn_if_unused(figures["z_sem_usage"])
    return DiagnoseResult(out, **figures, skipped=skipped)
