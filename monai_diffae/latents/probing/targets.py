"""Labels as a probe takes them: classes or a number, which cases have one, and what about them is suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.targets import class_name, missing

MOST_VALUES = 10  # a number of more is continuous
_MOST_CLASSES = 20
_LARGEST = 1e30  # of more, the gradients of boosting, in single precision, overflow, then the squares
_AS_MANY_VALUES = 0.9  # as the target's, of a copy that was rounded
_FAR, _FAR_AS_LOGARITHM = 10, 4  # interquartile ranges


@dataclass(frozen=True, eq=False)
class ProbeTarget:
    """A label of the cases that have it.

    Attributes:
        name: of the label.
        classes: the classes' names, in the order of numbers or of text; None of a continuous label.
        values: ``[K]``: each case's class, from 0, or the number.
        rows: ``[K]``, which cases these are, in the order that was asked for.
    """

    name: str
    classes: tuple[str, ...] | None
    values: NDArray[Any]
    rows: NDArray[np.intp]

    def only(self, keep: NDArray[np.bool_]) -> ProbeTarget:
        """Fewer of its cases; classes of which none is left are dropped."""
        values, rows = self.values[keep], self.rows[keep]
        if self.classes is None:
            return ProbeTarget(self.name, None, values, rows)
        left, codes = np.unique(values, return_inverse=True)
        return ProbeTarget(self.name, tuple(self.classes[k] for k in left), codes, rows)

    def patients_of_classes(self, groups: NDArray[Any], rows: NDArray[np.intp] | None = None) -> dict[str, int]:
        """How many patients have a case of each class.

        Args:
            groups: ``[K]``, the patients.
            rows: only these of the K cases.
        """
        chosen = np.arange(len(self.values)) if rows is None else rows
        return {
            name: len(np.unique(groups[chosen][self.values[chosen] == code]))
            for code, name in enumerate(self.classes or ())
        }


def read_probe_target(labels: Sequence[Any], name: str, rows: NDArray[np.intp] | None = None) -> ProbeTarget:
    """What a label is: numbers of which there are more than 10 are continuous, all else classes.

    Args:
        labels: ``[N]``, numbers, booleans or text; None, NaN and blank text stand for no label. All of them say what
            the label is, whichever are taken.
        name: of the label.
        rows: which cases to take, and in which order; all when None.

    Raises:
        ConfigError: one value only, text of more than 20 values, or numbers that are infinite or above 1e30.

    Example:
        >>> target = read_probe_target(["ill", "well", None, "ill"], "state")
        >>> target.classes, target.values, target.rows
        (('ill', 'well'), array([0, 1, 0]), array([0, 1, 3]))
        >>> read_probe_target(np.arange(20.0), "age").classes is None
        True
    """
    is_known = ~missing(labels)
    known = [value for value, there in zip(labels, is_known, strict=True) if there]
    is_number = all(isinstance(value, (Real, np.bool_)) for value in known)
    if is_number and any(abs(value) > _LARGEST for value in known):
        raise ConfigError(
            f"target '{name}': holds values that are infinite or too large to reckon with; correct them, or leave "
            "those labels empty"
        )
    is_continuous = is_number and len({class_name(value) for value in known}) > MOST_VALUES
    asked = np.arange(len(labels)) if rows is None else rows
    taken = asked[is_known[asked]]
    chosen = [labels[row] for row in taken]
    classes = tuple(
        dict.fromkeys(class_name(value) for value in sorted(chosen, key=float if is_number else class_name))
    )
    if len(classes) < 2:
        raise ConfigError(
            f"target '{name}': {len(chosen)} of {len(asked)} cases have it, and it is the same for all; "
            "choose one that varies"
        )
    if is_continuous:
        return ProbeTarget(name, None, np.array(chosen, np.float64), taken)
    if len(classes) > _MOST_CLASSES:
        raise ConfigError(f"target '{name}': is text of {len(classes)} different values; choose another")
    codes = np.array([classes.index(class_name(value)) for value in chosen], np.intp)
    return ProbeTarget(name, classes, codes, taken)


def far_off(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which numbers lie so far from the others that they are probably errors, or codes for something else.

    Those more than 10 interquartile ranges from the median. Of amounts, which are never negative (but for such codes),
    the logarithms have to be far off too, by more than 4: log-normal ones are not.

    Args:
        values: ``[K]``, finite.

    Example:
        >>> far_off(np.array([50.0, 61, 43, 77, 999, 58, -999])).nonzero()[0]
        array([4, 6])
    """
    is_far = _distance(values) > _FAR
    if is_far.any() and (is_far | (values >= 0)).all():
        is_far[values > 0] &= _distance(np.log(values[values > 0])) > _FAR_AS_LOGARITHM
    return is_far


def copies_of(target: ProbeTarget, features: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which features say the target itself: a number that rises or falls with it, or a code of its classes.

    Args:
        target: K cases.
        features: ``[K, D]``, theirs.

    Example:
        >>> target = read_probe_target(np.arange(20.0), "age")
        >>> copies_of(target, np.stack([np.arange(20) % 7, -np.arange(20.0) ** 2], axis=1))
        array([1])
    """
    order = np.argsort(target.values, kind="stable")
    is_other = np.diff(target.values[order]) != 0
    steps = np.diff(features[order], axis=0)
    if target.classes is None:
        least = max(MOST_VALUES, _AS_MANY_VALUES * is_other.sum())  # fewer may rise by chance
        is_monotone = (steps >= 0).all(axis=0) | (steps <= 0).all(axis=0)
        return np.flatnonzero(is_monotone & ((steps != 0).sum(axis=0) >= least))
    codes = np.sort(features[order][np.r_[True, is_other]], axis=0)
    return np.flatnonzero((steps[~is_other] == 0).all(axis=0) & (np.diff(codes, axis=0) != 0).all(axis=0))


def _distance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From the median, in interquartile ranges."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    distance = np.abs(values - middle)
    if not distance.any():
        return distance
    return distance / (high - low or np.median(distance[distance > 0]))  # the latter of values that are mostly one
