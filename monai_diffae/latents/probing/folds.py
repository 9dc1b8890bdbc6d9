"""Which cases of a table a probe is fitted to and judged on: the table's own split, or cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents.probing.nested import cross_validation, train_and_test
from monai_diffae.latents.probing.probes import Folds, inner_folds
from monai_diffae.latents.probing.targets import ProbeTarget, far_off, read_probe_target

logger = logging.getLogger(__name__)

Evaluation = Literal["split", "cv"]

_ENOUGH_PATIENTS, _ENOUGH_OF_CLASS = 30, 10


@dataclass(frozen=True, eq=False)
class Cases:
    """The cases of a table of embeddings, as folds need them.

    Attributes:
        positions: of the cases that take part, in an order that does not depend on the table's.
        patients: ``[N]``, of all cases.
        splits: ``[N]``, of all cases; None where the table has none.
        is_restricted: whether only some splits take part.
    """

    positions: NDArray[np.intp]
    patients: NDArray[np.str_]
    splits: NDArray[np.str_] | None
    is_restricted: bool = False

    @classmethod
    def of(cls, table: pd.DataFrame, there: NDArray[np.bool_], splits: Sequence[str] = ()) -> Cases:
        """The cases that have all features, of these splits only where there are some.

        Raises:
            CohortError: none is left.
            ConfigError: ``splits``, and the table has no such split.
        """
        ids = [str(case) for case in (table["id"] if "id" in table else range(len(table)))]
        names = table["patient"] if "patient" in table else [None] * len(ids)
        if "patient" not in table:
            logger.warning("the table has no column patient: each case counts as a patient of its own")
        patients = np.array([
            f"case {case}" if pd.isna(name) else str(name) for case, name in zip(ids, names, strict=True)
        ])  # fmt: skip
        of_split = np.array([str(split) for split in table["split"]]) if "split" in table else None
        if splits:
            known = [] if of_split is None else sorted(np.unique(of_split).tolist())
            missing = [name for name in splits if name not in known]
            if missing:
                raise ConfigError(f"splits: the table has no split '{missing[0]}'; it has {', '.join(known) or 'none'}")
            is_chosen = np.isin(of_split, list(splits))  # type: ignore[arg-type]
        else:
            is_chosen = np.ones(len(table), bool)
        lacking = int((is_chosen & ~there).sum())
        if lacking:
            logger.warning("%d cases are left out: not all features have them", lacking)
        if not (is_chosen & there).any():
            raise CohortError("probe: no case has all features; they must be of the same cases")
        order = np.lexsort((np.array(ids), patients))
        return cls(order[(is_chosen & there)[order]], patients, of_split, bool(splits))

    def has_split(self) -> bool:
        """Whether there are training cases, and others to judge by."""
        return self.splits is not None and "train" in self.splits and bool({"val", "test"} & {*self.splits})


@dataclass(frozen=True, eq=False)
class Chosen:
    """What a target is judged on.

    Attributes:
        target: its cases; positions are the table's.
        patients: theirs.
        folds: training and test cases, as places among the target's.
        evaluation: ``split`` or ``cv``.
        num_left_out: cases without the label, or of a class that is too small to be judged.
        small_classes: how many patients those classes have among the judged that have fewer than 10.
        num_seen: judged cases of patients that the autoencoder was trained on.
    """

    target: ProbeTarget
    patients: NDArray[np.str_]
    folds: Folds
    evaluation: Evaluation
    num_left_out: int
    small_classes: dict[str, int]
    num_seen: int


def choose_folds(
    cases: Cases, labels: Sequence[Any], name: str, evaluation: Evaluation | None = None, seed: int = 0
) -> Chosen:
    """How a target is evaluated; what should be known about it is logged, one line each.

    Args:
        cases: of the table.
        labels: ``[N]``, of all cases.
        name: of the target.
        evaluation: as the table allows when None.
        seed: of the folds.

    Raises:
        ConfigError: the label is the same for all, or text of too many values, or has too few cases; a patient is among
            both the training and the test cases; or there is no split to evaluate by.
    """
    target = read_probe_target(labels, name, cases.positions)
    patients = cases.patients[target.rows]
    how: Evaluation = evaluation or ("split" if _is_split_enough(cases, target, patients) else "cv")
    if how == "split":
        kept, folds = train_and_test(target, patients, *_sides(cases, target.rows))
        num_considered = int(sum(side.sum() for side in _sides(cases, cases.positions)))
    else:
        kept, folds = cross_validation(target, patients, seed)
        num_considered = len(cases.positions)
    patients = cases.patients[kept.rows]
    judged = np.sort(np.concatenate([test for _, test in folds]))
    counts = kept.patients_of_classes(patients, judged)
    chosen = Chosen(
        target=kept, patients=patients, folds=folds, evaluation=how, num_left_out=num_considered - len(kept.rows),
        small_classes={label: count for label, count in counts.items() if count < _ENOUGH_OF_CLASS},
        num_seen=_num_seen(cases, patients[judged]),
    )  # fmt: skip
    _say(chosen, target, judged, seed)
    return chosen


def _sides(cases: Cases, rows: NDArray[np.intp]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of some rows of the table are for training, and which to judge by."""
    if cases.splits is None or not cases.has_split():
        raise ConfigError(
            "evaluation: the table has no training cases, or none in test or val; say --evaluation cv, or embed a "
            "cohort with splits"
        )
    splits = cases.splits[rows]
    return splits == "train", splits == ("test" if "test" in cases.splits else "val")


def _is_split_enough(cases: Cases, target: ProbeTarget, patients: NDArray[np.str_]) -> bool:
    if cases.is_restricted or not cases.has_split():
        return False
    is_train, is_test = _sides(cases, target.rows)
    if len(np.unique(patients[is_test])) < _ENOUGH_PATIENTS or not is_train.any():
        return False
    return all(n >= _ENOUGH_OF_CLASS for n in target.patients_of_classes(patients, np.flatnonzero(is_test)).values())


def _num_seen(cases: Cases, patients: NDArray[np.str_]) -> int:
    if cases.splits is None:
        return 0
    return int(np.isin(patients, cases.patients[cases.splits == "train"]).sum())


def _say(chosen: Chosen, before: ProbeTarget, judged: NDArray[np.intp], seed: int) -> None:
    target, name = chosen.target, chosen.target.name
    if chosen.num_left_out:
        logger.info("target '%s': %d cases without a label that counts are left out", name, chosen.num_left_out)
    dropped = [label for label in before.classes or () if label not in (target.classes or ())]
    if dropped:
        logger.warning("target '%s': too few patients of %s, which is left out", name, ", ".join(dropped))
    for label, count in chosen.small_classes.items():
        logger.warning("target '%s': only %d judged patients are of '%s'; its scores say little", name, count, label)
    num_patients = len(np.unique(chosen.patients[judged]))
    if target.classes is None and num_patients < _ENOUGH_OF_CLASS:
        logger.warning("target '%s': only %d patients are judged; its scores say little", name, num_patients)
    num_classes = None if target.classes is None else len(target.classes)
    without = sum(
        not inner_folds(target.values[train], chosen.patients[train], num_classes, seed) for train, _ in chosen.folds
    )
    if without:
        logger.warning(
            "target '%s': in %d of %d folds the training patients are too few to choose a strength of the probes, and "
            "the strongest is taken; label more patients", name, without, len(chosen.folds),
        )  # fmt: skip
    if target.classes is None and (is_far := far_off(target.values)).any():
        outliers = target.values[is_far]
        logger.warning(
            "target '%s': %d of %d values are far from all others, such as %g, and the scores hang on them; correct or "
            "empty those that are errors or codes", name, len(outliers), len(is_far), outliers[abs(outliers).argmax()],
        )  # fmt: skip
    if chosen.num_seen:
        logger.warning(
            "target '%s': %d of the %d judged cases are of patients that the autoencoder was trained on (without "
            "labels), which can flatter z_sem; --splits val,test leaves them out", name, chosen.num_seen, len(judged),
        )  # fmt: skip
