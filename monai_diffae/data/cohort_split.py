"""Read a cohort and split it: the component ``cohort`` of a bundle's configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_diffae.data.cases import Case, find_cases
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.failures import Failure, SkippedCases
from monai_diffae.data.fingerprints import cohort_fingerprint
from monai_diffae.data.slice_cases import expand_slices
from monai_diffae.data.slices import Axis
from monai_diffae.data.splits import assign_splits, check_links
from monai_diffae.errors import CohortError, ConfigError, counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitCohort:
    """A cohort in which every case has a split; for a 2D model, its volumes are expanded into slices.

    Attributes:
        cases: all cases, in order.
        failures: volumes whose header cannot be read.
        fingerprint: SHA-256 of ids, file sizes and splits, from which no name can be read.
        is_drawn: whether cases of ``val`` or ``test`` were drawn at random, because the cohort did not name them.
    """

    cases: list[Case]
    failures: list[Failure] = field(default_factory=list)
    fingerprint: str = ""
    is_drawn: bool = False

    def split(self, name: str) -> list[Case]:
        """The cases of ``train``, ``val`` or ``test``."""
        return [case for case in self.cases if case.split == name]

    def counts(self) -> dict[str, int]:
        """The number of scans and patients, and of images in each split; a scan may be expanded into several slices.

        Example:
            >>> SplitCohort([Case(f"a-{k}", {}, "p", "train", slice_index=k) for k in (3, 5)]).counts()
            {'scans': 1, 'patients': 1, 'train': 2, 'val': 0, 'test': 0}
        """
        return {
            "scans": len({tuple(sorted(case.images.items())) for case in self.cases}),
            "patients": len({case.patient for case in self.cases}),
            **{name: len(self.split(name)) for name in ("train", "val", "test")},
        }

    def choose(self, ids: Sequence[str] = (), split: str | None = None, limit: int | None = None) -> list[Case]:
        """Return the cases with these ids, in their order; without ids, the first ``limit`` cases of a split.

        Args:
            ids: ids of cases; numbers are read as text.
            split: ``train``, ``val`` or ``test``; None: all cases.
            limit: at most this many cases of the split.

        Raises:
            CohortError: no case has such an id, or none is in the split.
        """
        if ids:
            return find_cases(self.cases, [str(name) for name in ids])
        cases = [case for case in self.cases if split in (None, case.split)][:limit]
        if not cases:
            raise CohortError(f"no case is in the split '{split}'; choose another split, or omit it")
        return cases

    def items(self, name: str) -> list[dict[str, Any]]:
        """The cases of a split as MONAI's transforms take them.

        Raises:
            CohortError: the split is empty.
        """
        items = [case.item() for case in self.split(name)]
        if not items:
            raise CohortError(
                f"no case is in the split '{name}': training needs at least two patients; "
                f"check the column split and {name}_fraction"
            )
        return items


def split_cohort(
    dataset_dir: str | os.PathLike[str],
    spatial_dims: int = 2,
    columns: Mapping[str, str] | None = None,
    image_keys: Sequence[str] = ("image",),
    patient_pattern: str | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    slice_axis: Axis = "axial",
    slice_range: tuple[float, float] = (0.0, 1.0),
    slice_step: int = 1,
) -> SplitCohort:
    """Read a cohort, split it by patient and, for a 2D model, expand its volumes into slices.

    Volumes whose header cannot be read are skipped with a warning.

    Args:
        dataset_dir: a folder, a CSV/TSV, a MONAI datalist JSON or a single scan, see
            :func:`~monai_diffae.data.cohorts.read_cohort`.
        spatial_dims: 2 or 3, the dimensions of the model.
        columns: names that the table uses for image, id, patient or split.
        image_keys: the columns with images.
        patient_pattern: a regular expression that finds the patient in the image's path.
        val_fraction: fraction of the patients for ``val``, if the table has no split.
        test_fraction: fraction of the patients for ``test``, if the table has no split.
        seed: random seed of the split.
        slice_axis: ``axial``, ``coronal`` or ``sagittal``; see :func:`~monai_diffae.data.slice_cases.expand_slices`.
        slice_range: the part of the axis to use, in 0..1, from inferior, posterior or left.
        slice_step: use every ``slice_step``-th slice of that part.

    Raises:
        ConfigError: ``dataset_dir`` is ``???``, the value of a configuration in which it has to be replaced.
        CohortError: there are no usable cases, or one file is in two splits.
    """
    if dataset_dir == "???":
        raise ConfigError("dataset_dir: is required; give it a value")
    listed = read_cohort(dataset_dir, columns=columns, image_keys=image_keys, patient_pattern=patient_pattern)
    cases = assign_splits(listed, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    check_links(cases, Path(dataset_dir).name)
    is_drawn = any(before.split is None and after.split != "train" for before, after in zip(listed, cases, strict=True))
    fingerprint = cohort_fingerprint(cases)
    failures: list[Failure] = []
    num_scans, num_patients = len(cases), len({case.patient for case in cases})
    if spatial_dims == 2:
        cases, failures = expand_slices(cases, axis=slice_axis, range=(slice_range[0], slice_range[1]), step=slice_step)
        skipped = SkippedCases()
        for failure in failures:
            skipped.log(failure)
    if not cases:
        raise CohortError(
            f"none of {len(failures)} scans can be read, the first is '{failures[0].case_id}': {failures[0].reason}"
        )
    counts = ", ".join(f"{sum(case.split == name for case in cases)} {name}" for name in ("train", "val", "test"))
    selects = len(cases) > num_scans and (tuple(slice_range), slice_step) != ((0, 1), 1)
    selected = f", from volumes with slice_range {list(slice_range)} and slice_step {slice_step}" if selects else ""
    scans, patients = counted(num_scans, "scan"), counted(num_patients, "patient")
    logger.info("%s of %s: %s images%s", scans, patients, counts, selected)
    return SplitCohort(cases, failures, fingerprint, is_drawn)
