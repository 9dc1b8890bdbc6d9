"""The command ``anomaly``: maps of what is unusual inside scans, masks, and calibrated scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.results import FolderResult, failed_cases, remove_images, run_once
from monai_diffae.apps.settings import NONE_GIVEN, Choice, Columns, Reading, UnbatchedRun


@dataclass(frozen=True)
class AnomalyResult(FolderResult):
    """The result of :func:`anomaly`.

    Attributes:
        folder: holds the folders ``maps`` and ``masks``, ``anomaly.csv`` and ``anomaly.png``.
        num_cases: rows of the table.
        num_unusual: cases with a p-value of at most .05.
        num_failed: cases that could not be used, listed in ``failures.csv``.
        skipped: whether the results were complete already.
    """

    num_cases: int
    num_unusual: int
    num_failed: int
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """How many cases are unusual, then the folder."""
        yield f"{self.num_unusual} of {self.num_cases} cases have a p-value of at most .05"
        yield from super().lines()

    def figures(self) -> dict[str, Any]:
        """The folder and the numbers of cases."""
        names = ("num_cases", "num_unusual", "num_failed")
        return {**super().figures(), **{name: getattr(self, name) for name in names}}

    @property
    def incomplete(self) -> str | None:
        """How many cases failed."""
        return failed_cases(self.num_failed, self.num_cases)


@command
def anomaly(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    quantile: Annotated[float, Ge(0), Le(1)] = 0.99,
    num_pictures: Annotated[int, Ge(1)] = 8,
    choice: Choice = Choice(),
    columns: Columns = NONE_GIVEN,
    run: UnbatchedRun = UnbatchedRun(),
) -> AnomalyResult:
    """Show what is unusual inside scans: maps and masks in the scan's own space, and scores with p-values.

    ``out/maps/<id>.nii.gz`` is the anomaly map (float32): how much a voxel differs from what the model expects, in
    units of the usual difference at this voxel. ``out/masks/<id>`` marks the voxels above the quantile with 1 (uint8;
    with 255 in PNG). Both are 0 outside the model's field of view. A volume is one case with a 2D bundle, too, and
    its map and mask are volumes, unless ``cases`` names single slices.

    ``anomaly.csv`` has one row per case, the most unusual first: ``id``, ``score``, ``p_value``, ``mask_voxels`` and
    ``mask_mm3`` (empty for pictures). ``anomaly.png`` shows the most unusual cases. Training
    calibrates a bundle; for a bundle without calibration, run ``calibrate`` first.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        quantile: A voxel belongs to the mask if its map value is above this quantile of all voxels of
            held-out cases.
        num_pictures: Number of cases in ``anomaly.png``.
        choice: Which cases; those that the bundle was trained on look more normal than new ones.
        columns: Names that the table uses for image, id, patient or split, e.g. ``image=file patient=subject``.
        run: How the command runs.

    Returns:
        The folder, and how many cases are unusual.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained or not calibrated, or ``out`` holds results
            of other inputs.
        CohortError: there is no usable case.

    Example:
        >>> anomaly("bundle", "cohort.csv", "out", quantile=2)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: quantile: 2 is above 1
    """
    from monai_diffae.apps.evaluation.anomaly_maps import AnomalyMaps, whole_scans
    from monai_diffae.apps.session import Session
    from monai_diffae.bundle import AnomalyDetector
    from monai_diffae.bundle.layout import ANOMALY, models_folder
    from monai_diffae.data.file_checksums import file_checksum

    session = Session.open(bundle, cohort, reading=Reading(columns=columns), run=run.batched)
    detector = AnomalyDetector.load(session.trained)
    if choice.cases:
        cases, failures = session.choose(choice), []
    else:
        cases, failures = (
            whole_scans(session.choose(Choice(split=choice.split)))[: choice.limit],
            session.cohort.failures,
        )
    calibration = file_checksum(models_folder(bundle) / ANOMALY)
    made_from = session.made_from(
        cases, decodes=False, calibration=calibration, quantile=quantile, num_pictures=num_pictures
    )
    results = [out / name for name in ("anomaly.csv", "anomaly.png", "maps", "masks")]

    def make() -> Mapping[str, Any]:
        for folder in results[2:]:
            remove_images(folder)
        return AnomalyMaps(session, detector, out, quantile, num_pictures).run(cases, failures)

    figures, skipped = run_once(out / "anomaly.json", results, made_from, make, overwrite=run.overwrite)
    return AnomalyResult(out, **figures, skipped=skipped)
