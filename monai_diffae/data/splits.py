"""Splits by patient: all cases of a patient are in one split."""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from monai_diffae.data.cases import Case
from monai_diffae.data.fingerprints import digest
from monai_diffae.errors import CohortError, ConfigError

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The names that a table may use for a split, and the standard name of each."""


SplitOrigin = Literal["training", "given", "drawn"]
"""Where a cohort's split is from: it is that of the model's training, was given with the cohort, or was drawn."""


def assign_splits(
    cases: Sequence[Case], *, val_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0
) -> list[Case]:
    """Assign every case to a split, by patient: existing splits are kept, a missing ``val`` or ``test`` is drawn."""
    # ``val`` is drawn from ``train`` and patients without a split, ``test`` from the latter only; two or more patients
    # give ``val`` at least one, unless its fraction is 0
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"val_fraction {val_fraction:g} and test_fraction {test_fraction:g} leave no training cases; lower them"
        )
    existing = {case.patient: case.split for case in cases if case.split}
    has_val, has_test = "val" in existing.values(), "test" in existing.values()
    unassigned = [p for p in {case.patient for case in cases} if p not in existing]
    pool = unassigned if has_val else unassigned + [p for p, split in existing.items() if split == "train"]
    ranked = sorted(pool, key=lambda patient: digest(f"{seed}:{patient}"))
    num_val = 0 if has_val or not val_fraction else min(max(1, round(val_fraction * len(pool))), len(pool) - 1)
    drawn = dict.fromkeys(ranked[:num_val], "val")
    rest = [p for p in ranked[num_val:] if p not in existing]
    num_test = 0 if has_test else min(round(test_fraction * len(unassigned)), len(ranked) - num_val - 1, len(rest))
    drawn |= dict.fromkeys(rest[: max(num_test, 0)], "test")
    return [replace(case, split=drawn.get(case.patient, existing.get(case.patient, "train"))) for case in cases]


def patients_in_two_splits(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases of each patient that is in several splits. Cases without a split do not count."""
    return _in_two_splits(cases, lambda case: case.patient)


def files_in_two_splits(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases of each file that is in several splits, by its path or by a symbolic or hard link."""
    return _in_two_splits(cases, lambda case: _identity(case.first_file))


def cases_of_one_file(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases of each image that several cases have, by the paths of its files."""

    def paths(case: Case) -> tuple[str, ...]:
        image = case.images["image"]
        return tuple(map(os.path.normpath, image if isinstance(image, tuple) else (image,)))

    return [group for group in _grouped(cases, paths) if len(group) > 1]


def check_splits(cases: Sequence[Case], source: str) -> None:
    """Raise an error if a patient is in two splits. The message has the ids of cases, because patients are private."""
    for group in patients_in_two_splits(cases):
        raise CohortError(f"{source}: the cases {_pair(group)} belong to one patient; put all of them into one split")


def check_links(cases: Sequence[Case], source: str) -> None:
    """Raise an error if one file is in two splits under two names, by a symbolic or hard link."""
    for group in files_in_two_splits(cases):
        raise CohortError(
            f"{source}: the cases {_pair(group)} are links to one file; keep one, or put both into one split"
        )


def _in_two_splits(cases: Sequence[Case], key: Callable[[Case], object]) -> list[list[Case]]:
    groups = _grouped([case for case in cases if case.split is not None], key)
    return [group for group in groups if len({case.split for case in group}) > 1]


def _grouped(cases: Sequence[Case], key: Callable[[Case], object]) -> Collection[list[Case]]:
    """The cases by a key; those without one (None) are left out."""
    groups: dict[object, list[Case]] = {}
    for case in cases:
        if (value := key(case)) is not None:
            groups.setdefault(value, []).append(case)
    return groups.values()


def _pair(group: Sequence[Case]) -> str:
    """The first two cases of a group that are in different splits."""
    first = group[0]
    other = next(case for case in group if case.split != first.split)
    return f"'{first.id[:60]}' ({first.split}) and '{other.id[:60]}' ({other.split})"


def _identity(file: Path) -> tuple[int, int] | str | None:
    """What all names of a file have in common; None if it is missing."""
    try:
        status = file.stat()
    except OSError:
        from monai_diffae.data.formats import dicom  # which loads pydicom and SimpleITK

        return str(file) if dicom.split_series(file)[1] is not None else None
    # some network drives have no such numbers
    return (status.st_dev, status.st_ino) if status.st_ino else str(file)
