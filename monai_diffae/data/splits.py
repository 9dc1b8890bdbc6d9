"""Splits by patient: no person is seen in training and judged on in validation."""

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
"""The words that a table may use, and ours."""


def assign_splits(
    cases: Sequence[Case], *, val_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0
) -> list[Case]:
    """Give every case a split: ``train``, ``val`` or ``test``, all cases of a patient the same.

    Patients are ranked by a hash of (seed, patient), so that neither the order of the files nor other patients decide
    who comes before whom. Splits that are given stay; where they have no ``val`` it is taken from ``train``, and
    ``test`` is taken only from patients without a split, and only where none is given.

    Args:
        cases: the cohort.
        val_fraction: of the patients; 0 for none, otherwise at least one patient, of two or more.
        test_fraction: of the patients; 0 for none.
        seed: another seed, another split.

    Raises:
        ConfigError: the fractions are negative or add up to 1 or more.

    Example:
        >>> cases = [Case(f"c{i}", {}, patient=f"p{i // 2}") for i in range(8)]
        >>> [case.split for case in assign_splits(cases, val_fraction=0.25, test_fraction=0.25)]
        ['test', 'test', 'train', 'train', 'val', 'val', 'train', 'train']
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"val_fraction {val_fraction:g} and test_fraction {test_fraction:g} must leave some for training"
        )
    given = {case.patient: case.split for case in cases if case.split}
    val_given, test_given = "val" in given.values(), "test" in given.values()
    free = [p for p in {case.patient for case in cases} if p not in given]
    pool = free if val_given else free + [p for p, split in given.items() if split == "train"]
    ranked = sorted(pool, key=lambda patient: _rank(seed, patient))
    n_val = 0 if val_given or not val_fraction else min(max(1, round(val_fraction * len(pool))), len(pool) - 1)
    chosen = dict.fromkeys(ranked[:n_val], "val")
    left = [p for p in ranked[n_val:] if p not in given]
    n_test = 0 if test_given else min(round(test_fraction * len(free)), len(ranked) - n_val - 1, len(left))
    chosen |= dict.fromkeys(left[: max(n_test, 0)], "test")
    return [replace(case, split=chosen.get(case.patient, given.get(case.patient, "train"))) for case in cases]


def check_splits(cases: Sequence[Case], source: str) -> None:
    """Refuse a patient in two splits. The cases are named, not the patient: that may be private."""
    seen: dict[str, Case] = {}
    for case in cases:
        if case.split is None:
            continue
        first = seen.setdefault(case.patient, case)
        if first.split != case.split:
            pair = f"'{first.id}' ({first.split}) and '{case.id}' ({case.split})"
            raise CohortError(f"{source}: the cases {pair} are of one patient; put all of a patient into one split")


def _rank(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode("utf-8", "surrogatepass")).hexdigest()
