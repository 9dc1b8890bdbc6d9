"""The cases that a probe is fitted to and evaluated on: the table's own split, or cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents.probing.nested import cross_validation_folds, split_folds
from monai_diffae.latents.probing.probes import Folds, inner_folds
from monai_diffae.latents.probing.targets import ProbeTarget, far_off, read_probe_target
from monai_diffae.latents.targets import LabelKind

logger = logging.getLogger(__name__)

Evaluation = Literal["split", "cv"]
SplitOrigin = Literal["training", "given", "drawn"]  # as of monai_diffae.data.splits

_MIN_PATIENTS, _MIN_PATIENTS_OF_CLASS = 30, 10


@dataclass(frozen=True, eq=False)
class ProbedCases:
    """The cases of a table of embeddings that take part in a probe.

    Attributes:
        positions: the rows of these cases, in an order that does not depend on the table's.
        patients: ``[N]``, the patient of every row of the table.
        splits: ``[N]``, the split of every row; None if the table has none.
        is_restricted: whether only the cases of some splits take part.
        split_origin: where the splits are from; None if this is not known.
    """

    positions: NDArray[np.intp]
    patients: NDArray[Any]
    splits: NDArray[Any] | None
    is_restricted: bool = False
    split_origin: SplitOrigin | None = None

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        is_available: NDArray[np.bool_],
        splits: Sequence[str] = (),
        split_origin: SplitOrigin | None = None,
    ) -> ProbedCases:
        """The cases for which all features are available, only those of the given splits if there are any.

        Raises:
            CohortError: there is no such case.
            ConfigError: the table does not have one of the splits.
        """
        ids = [str(case) for case in (table["id"] if "id" in table else range(len(table)))]
        names = table["patient"] if "patient" in table else [None] * len(ids)
        if "patient" not in table:
            logger.warning("the table has no column patient: each case counts as a patient of its own")
        patients = np.array([
            f"case {case}" if pd.isna(name) else str(name) for case, name in zip(ids, names, strict=True)
        ])  # fmt: skip
        split_of_rows = np.array([str(split) for split in table["split"]]) if "split" in table else None
        is_in_splits = _is_in_splits(split_of_rows, splits) if splits else np.ones(len(table), bool)
        num_unavailable = int((is_in_splits & ~is_available).sum())
        if num_unavailable:
            logger.warning("%d cases are omitted: not all features are available for them", num_unavailable)
        if not (is_in_splits & is_available).any():
            raise CohortError("probe: no case has all features; give features of the same cases")
        order = np.argsort(np.array(ids), kind="stable")  # patients are hashes, which differ between folders
        if split_origin == "drawn":
            logger.warning(
                "it is not known which cases the autoencoder was trained on: the split was drawn at random for this "
                "table; if it was trained on some, their scores may be too high"
            )
        return cls(order[(is_in_splits & is_available)[order]], patients, split_of_rows, bool(splits), split_origin)

    def has_split(self) -> bool:
        """Whether the table has training cases, and validation or test cases."""
        return self.splits is not None and "train" in self.splits and bool({"val", "test"} & {*self.splits})


def _is_in_splits(split_of_rows: NDArray[Any] | None, splits: Sequence[str]) -> NDArray[np.bool_]:
    existing = [] if split_of_rows is None else sorted(np.unique(split_of_rows).tolist())
    missing = [name for name in splits if name not in existing]
    if missing:
        raise ConfigError(f"splits: the table has no split '{missing[0]}'; it has {', '.join(existing) or 'none'}")
    return np.isin(split_of_rows, list(splits))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class TargetFolds:
    """A target, and the folds in which it is evaluated.

    Attributes:
        target: the target of K cases; its rows are those of the table.
        patients: ``[K]``, the patients.
        folds: training and test cases, as positions among the K cases.
        evaluation: ``split`` or ``cv``.
        num_omitted: cases without the label, or of a class that is too small to be evaluated.
        small_classes: number of test patients of each class that has fewer than 10.
        num_seen: test cases of patients that the autoencoder was trained on, if the table's split is that of the
            training; None if the split was drawn for the table.
        is_split_of_training: False if that is only possible.
    """

    target: ProbeTarget
    patients: NDArray[Any]
    folds: Folds
    evaluation: Evaluation
    num_omitted: int
    small_classes: dict[str, int]
    num_seen: int | None
    is_split_of_training: bool = True

    @property
    def test_cases(self) -> NDArray[np.intp]:
        """The cases that are evaluated, as positions among the K cases, ascending."""
        return np.sort(np.concatenate([test for _, test in self.folds]))


def choose_folds(
    cases: ProbedCases,
    labels: Sequence[Any],
    name: str,
    evaluation: Evaluation | None = None,
    seed: int = 0,
    kind: LabelKind = "auto",
) -> TargetFolds:
    """Choose how a target is evaluated. Whatever may make its scores unreliable is logged.

    Args:
        cases: the cases of the table.
        labels: ``[N]``, the labels of every row of the table.
        name: name of the target.
        evaluation: ``split`` or ``cv``; None: ``split`` if the table has enough test cases, else ``cv``.
        seed: random seed of the folds.
        kind: whether labels are ``classes`` or ``numbers``; ``auto``: see
            :func:`~monai_diffae.latents.targets.are_classes`.

    Raises:
        ConfigError: the label is the same for all cases, is text with too many values, or has too few cases; a patient
            has both training and test cases; or the table has no split to evaluate on.
    """
    all_cases = read_probe_target(labels, name, cases.positions, kind)
    patients = cases.patients[all_cases.rows]
    if evaluation is None:
        evaluation = "split" if _is_split_enough(cases, all_cases, patients) else "cv"
    if evaluation == "split":
        target, folds = split_folds(all_cases, patients, *_sides(cases, all_cases.rows))
        num_considered = int(sum(side.sum() for side in _sides(cases, cases.positions)))
    else:
        target, folds = cross_validation_folds(all_cases, patients, seed)
        num_considered = len(cases.positions)
    patients = cases.patients[target.rows]
    test = np.sort(np.concatenate([test for _, test in folds]))
    counts = target.patients_of_classes(patients, test)
    target_folds = TargetFolds(
        target=target, patients=patients, folds=folds, evaluation=evaluation,
        num_omitted=num_considered - len(target.rows),
        small_classes={label: count for label, count in counts.items() if count < _MIN_PATIENTS_OF_CLASS},
        num_seen=_num_seen(cases, patients[test]), is_split_of_training=cases.split_origin != "given",
    )  # fmt: skip
    _log_omitted(target_folds, all_cases)
    _log_unreliable(target_folds, seed)
    return target_folds


def _sides(cases: ProbedCases, rows: NDArray[np.intp]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each of some rows of the table is a training case, and whether it is a test case."""
    if cases.splits is None or not cases.has_split():
        raise ConfigError(
            "evaluation: the table has no training cases, or no validation or test cases; set evaluation to cv, or "
            "embed a cohort with splits"
        )
    splits = cases.splits[rows]
    return splits == "train", splits == ("test" if "test" in cases.splits else "val")


def _is_split_enough(cases: ProbedCases, target: ProbeTarget, patients: NDArray[Any]) -> bool:
    """Whether the table's split has training cases and enough test patients, in total and of each class."""
    if cases.is_restricted or not cases.has_split():
        return False
    is_train, is_test = _sides(cases, target.rows)
    if len(np.unique(patients[is_test])) < _MIN_PATIENTS or not is_train.any():
        return False
    counts = target.patients_of_classes(patients, np.flatnonzero(is_test))
    return all(count >= _MIN_PATIENTS_OF_CLASS for count in counts.values())


def _num_seen(cases: ProbedCases, patients: NDArray[Any]) -> int | None:
    if cases.split_origin == "drawn":
        return None
    if cases.splits is None:
        return 0
    return int(np.isin(patients, cases.patients[cases.splits == "train"]).sum())


def _log_omitted(target_folds: TargetFolds, all_cases: ProbeTarget) -> None:
    name, classes = target_folds.target.name, target_folds.target.classes or ()
    if target_folds.num_omitted:
        logger.info("target '%s': %d cases without a usable label are omitted", name, target_folds.num_omitted)
    omitted_classes = [label for label in all_cases.classes or () if label not in classes]
    if omitted_classes:
        logger.warning("target '%s': classes with too few patients are omitted: %s", name, ", ".join(omitted_classes))


def _log_unreliable(target_folds: TargetFolds, seed: int) -> None:
    """Log a warning for everything that makes the scores unreliable."""
    target, name, test = target_folds.target, target_folds.target.name, target_folds.test_cases
    for label, count in target_folds.small_classes.items():
        logger.warning(
            "target '%s': there are only %d test patients of class '%s', so its scores are unreliable",
            name, count, label,
        )  # fmt: skip
    num_patients = len(np.unique(target_folds.patients[test]))
    if target.classes is None and num_patients < _MIN_PATIENTS_OF_CLASS:
        logger.warning("target '%s': there are only %d test patients, so its scores are unreliable", name, num_patients)
    num_classes = None if target.classes is None else len(target.classes)
    num_without = sum(
        not inner_folds(target.values[train], target_folds.patients[train], num_classes, seed)
        for train, _ in target_folds.folds
    )
    if num_without:
        logger.warning(
            "target '%s': %d of %d folds have too few training patients to choose a regularisation, so the strongest "
            "is used; label more patients", name, num_without, len(target_folds.folds),
        )  # fmt: skip
    if target.classes is None and (is_far := far_off(target.values)).any():
        outliers = target.values[is_far]
        logger.warning(
            "target '%s': %d of %d values are far from all others, such as %g, and can dominate the scores; correct "
            "or empty them if they are errors or codes",
            name, len(outliers), len(is_far), outliers[abs(outliers).argmax()],
        )  # fmt: skip
    if target_folds.num_seen:
        text = (
            "target '%s': the autoencoder was trained on patients of %d of the %d test cases (without labels), so the "
            "scores of z_sem may be too high; set splits to val and test to exclude them"
            if target_folds.is_split_of_training
            else "target '%s': if the autoencoder was trained on the table's training cases, it has seen patients of "
            "%d of the %d test cases, and their scores may be too high; set splits to val and test to exclude them"
        )
        logger.warning(text, name, target_folds.num_seen, len(test))
