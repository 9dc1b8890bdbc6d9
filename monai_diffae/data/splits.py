"""Splits by patient: all cases of a patient are in one split."""

# tested in tests/data/test_cohorts.py

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from monai_diffae.data.cases import Case
from monai_diffae.errors import CohortError, ConfigError

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The names that a table may use for a split, and the standard name of each."""


def assign_splits(
    cases: Sequence[Case], *, val_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0
) -> list[Case]:
    """Assign every case to a split: ``train``, ``val`` or ``test``. All cases of a patient get the same.

    Patients are ranked by a hash of (seed, patient), so the ranking of two patients depends neither on the order of
    the files nor on other patients. Existing splits are kept. If there is no ``val`` among them, it is drawn from
    ``train`` and from patients without a split. ``test`` is drawn from patients without a split only, and only if
    there is no ``test`` among the existing splits.

    Args:
        cases: the cohort.
        val_fraction: fraction of the patients for ``val``; unless 0, at least one of two or more patients.
        test_fraction: fraction of the patients for ``test``.
        seed: random seed.

    Raises:
        ConfigError: a fraction is negative, or both add up to 1 or more.

    Example:
        >>> cases = [Case(f"c{i}", {}, patient=f"p{i // 2}") for i in range(8)]
        >>> [case.split for case in assign_splits(cases, val_fraction=0.25, test_fraction=0.25)]
        ['test', 'test', 'train', 'train', 'val', 'val', 'train', 'train']
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"val_fraction {val_fraction:g} and test_fraction {test_fraction:g} leave no training cases; lower them"
        )
    existing = {case.patient: case.split for case in cases if case.split}
    has_val, has_test = "val" in existing.values(), "test" in existing.values()
    unassigned = [p for p in {case.patient for case in cases} if p not in existing]
    pool = unassigned if has_val else unassigned + [p for p, split in existing.items() if split == "train"]
    ranked = sorted(pool, key=lambda patient: _rank(seed, patient))
    num_val = 0 if has_val or not val_fraction else min(max(1, round(val_fraction * len(pool))), len(pool) - 1)
    drawn = dict.fromkeys(ranked[:num_val], "val")
    rest = [p for p in ranked[num_val:] if p not in existing]
    num_test = 0 if has_test else min(round(test_fraction * len(unassigned)), len(ranked) - num_val - 1, len(rest))
    drawn |= dict.fromkeys(rest[: max(num_test, 0)], "test")
    return [replace(case, split=drawn.get(case.patient, existing.get(case.patient, "train"))) for case in cases]


def check_splits(cases: Sequence[Case], source: str) -> None:
    """Raise an error if a patient is in two splits. The message has the ids of cases, because patients are private.

    Args:
        cases: the cohort.
        source: the name of its table or folder, for the message.

    Raises:
        CohortError: a patient is in two splits.
    """
    first_cases: dict[str, Case] = {}
    for case in cases:
        if case.split is None:
            continue
        first = first_cases.setdefault(case.patient, case)
        if first.split != case.split:
            pair = f"'{first.id}' ({first.split}) and '{case.id}' ({case.split})"
            raise CohortError(f"{source}: the cases {pair} belong to one patient; put all of them into one split")


def check_links(cases: Sequence[Case], source: str) -> None:
    """Raise an error if one file is in two splits under two names, by a symbolic or hard link.

    Args:
        cases: the cohort, with a split for every case.
        source: the name of its table or folder, for the message.

    Raises:
        CohortError: a file is in two splits.
    """
    first_cases: dict[tuple[int, int], Case] = {}
    for case in cases:
        try:
            status = case.first_file.stat()
        except OSError:  # missing files fail when they are read
            continue
        if not status.st_ino:  # some network drives have no such numbers
            continue
        first = first_cases.setdefault((status.st_dev, status.st_ino), case)
        if first.split != case.split:
            pair = f"'{first.id[:60]}' ({first.split}) and '{case.id[:60]}' ({case.split})"
            raise CohortError(f"{source}: the cases {pair} are links to one file; keep one, or put both into one split")


def _rank(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode("utf-8", "surrogatepass")).hexdigest()
