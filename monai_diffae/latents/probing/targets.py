"""Labels as targets of a probe: classes or numbers, the cases that have one, and checks for suspicious values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.targets import MAX_VALUES, LabelKind, are_classes, class_name, class_names, missing

_MAX_CLASSES = 20
_SHARE_OF_VALUES = 0.9  # a rounded copy of the target has at least this share of its values
_FAR, _FAR_AS_LOGARITHM = 10, 4  # interquartile ranges


@dataclass(frozen=True, eq=False)
class ProbeTarget:
    """A label, for the K cases that have it.

    Attributes:
        name: name of the label.
        classes: names of the classes, sorted as numbers or text; None for a continuous label.
        values: ``[K]``, the class of each case, counted from 0, or the number.
        rows: ``[K]``, the rows of these cases, in the requested order.
    """

    name: str
    classes: tuple[str, ...] | None
    values: NDArray[Any]
    rows: NDArray[np.intp]

    def only(self, keep: NDArray[np.bool_]) -> ProbeTarget:
        """The target of some of its cases, without classes that none of them has."""
        values, rows = self.values[keep], self.rows[keep]
        if self.classes is None:
            return ProbeTarget(self.name, None, values, rows)
        remaining, codes = np.unique(values, return_inverse=True)
        return ProbeTarget(self.name, tuple(self.classes[k] for k in remaining), codes, rows)

    def patients_of_classes(self, groups: NDArray[Any], rows: NDArray[np.intp] | None = None) -> dict[str, int]:
        """The number of patients with a case of each class.

        Args:
            groups: ``[K]``, the patients.
            rows: count only these of the K cases.
        """
        rows = np.arange(len(self.values)) if rows is None else rows
        return {
            name: len(np.unique(groups[rows][self.values[rows] == code]))
            for code, name in enumerate(self.classes or ())
        }


def read_probe_target(
    labels: Sequence[Any], name: str, rows: NDArray[np.intp] | None = None, kind: LabelKind = "auto"
) -> ProbeTarget:
    """Read a label as classes or numbers; see :func:`~monai_diffae.latents.targets.are_classes`.

    Args:
        labels: ``[N]``, numbers, booleans or text; None, NaN, blank text and words such as NA are missing. All of them
            count for whether the label is a number, not only those of ``rows``.
        name: name of the label.
        rows: the cases to use, in this order; None: all.
        kind: ``classes``, ``numbers``, or ``auto``.

    Raises:
        ConfigError: there is only one value, more than 20 different classes, or numbers are infinite or above 1e30.

    Example:
        >>> target = read_probe_target(["ill", "well", None, "ill"], "state")
        >>> target.classes, target.values, target.rows
        (('ill', 'well'), array([0, 1, 0]), array([0, 1, 3]))
        >>> read_probe_target(np.arange(20.0), "age").classes is None
        True
    """
    is_labelled = ~missing(labels)
    all_values = [value for value, has_label in zip(labels, is_labelled, strict=True) if has_label]
    names = class_names(all_values, name)
    requested = np.arange(len(labels)) if rows is None else rows
    labelled = requested[is_labelled[requested]]
    values = [labels[row] for row in labelled]
    present = {class_name(value) for value in values}
    classes = tuple(each for each in names if each in present)
    if len(classes) < 2:
        raise ConfigError(
            f"target '{name}': {len(values)} of {len(requested)} cases have it, and it is the same for all; "
            "choose one that varies"
        )
    if not are_classes(all_values, kind):
        return ProbeTarget(name, None, np.array(values, np.float64), labelled)
    if len(classes) > _MAX_CLASSES:
        raise ConfigError(f"target '{name}': has {len(classes)} different classes; choose another target")
    codes = np.array([classes.index(class_name(value)) for value in values], np.intp)
    return ProbeTarget(name, classes, codes, labelled)


def far_off(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Find numbers that are so far from the others that they are probably errors or codes.

    These are numbers more than 10 interquartile ranges from the median. If all other numbers are positive or 0, as
    amounts are, their logarithms must also be more than 4 interquartile ranges away, so that the tail of a log-normal
    distribution does not count.

    Args:
        values: ``[K]``, finite.

    Returns:
        ``[K]``, whether each number is far off.

    Example:
        >>> far_off(np.array([50.0, 61, 43, 77, 999, 58, -999])).nonzero()[0]
        array([4, 6])
    """
    is_far = _distance(values) > _FAR
    if is_far.any() and (is_far | (values >= 0)).all():
        is_far[values > 0] &= _distance(np.log(values[values > 0])) > _FAR_AS_LOGARITHM
    return is_far


def copies_of(target: ProbeTarget, features: NDArray[np.float64]) -> NDArray[np.intp]:
    """Find features that determine the target: monotonic functions of a number, or codes of the classes.

    Args:
        target: the target of K cases.
        features: ``[K, D]``.

    Returns:
        The columns of these features.

    Example:
        >>> target = read_probe_target(np.arange(20.0), "age")
        >>> copies_of(target, np.stack([np.arange(20) % 7, -np.arange(20.0) ** 2], axis=1))
        array([1])
    """
    order = np.argsort(target.values, kind="stable")
    target_changes = np.diff(target.values[order]) != 0
    steps = np.diff(features[order], axis=0)
    if target.classes is None:
        min_steps = max(MAX_VALUES, _SHARE_OF_VALUES * target_changes.sum())  # fewer may be monotonic by chance
        is_monotonic = (steps >= 0).all(axis=0) | (steps <= 0).all(axis=0)
        return np.flatnonzero(is_monotonic & ((steps != 0).sum(axis=0) >= min_steps))
    codes = np.sort(features[order][np.r_[True, target_changes]], axis=0)
    is_constant_in_class = (steps[~target_changes] == 0).all(axis=0)
    return np.flatnonzero(is_constant_in_class & (np.diff(codes, axis=0) != 0).all(axis=0))


def _distance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance from the median, in interquartile ranges."""
    low, median, high = np.percentile(values, [25, 50, 75])
    distance = np.abs(values - median)
    if not distance.any():
        return distance
    return distance / (high - low or np.median(distance[distance > 0]))  # the latter if most values are equal
