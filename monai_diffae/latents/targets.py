"""Labels as targets: classes or a number, and which cases have one. The same rule holds wherever labels are read."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError, shortened
from monai_diffae.latents.statistics import Floats
from monai_diffae.policies import MISSING_WORDS, check_choice

logger = logging.getLogger(__name__)

Kind = Literal["binary", "continuous"]
LabelKind = Literal["auto", "classes", "numbers"]

MAX_VALUES, _LARGEST_CLASS = 10, 20  # of whole numbers that are classes
_MAX_CLASSES = 20
_FEWEST_PER_CLASS = 5  # cases of a text label that is a target by default
_ID = re.compile(r"(^|[\W_])(?i:id)$|[a-z]ID$")
_MOST_DIFFERENT = 2 / 3  # of the labels
_LARGEST = 1e30  # larger values overflow in boosting, whose gradients are in single precision
_MOST_LISTED = 10
_SHARE_OF_VALUES = 0.9  # a rounded copy of the target has at least this share of its values
_FAR, _FAR_AS_LOGARITHM = 10, 4  # interquartile ranges


@dataclass(frozen=True, eq=False)
class Target:
    """A label, for the K cases that have it."""

    name: str  #: name of the label
    #: names of the classes, sorted as numbers or text (the negative one first if one is positive); None for a
    #: continuous label
    classes: tuple[str, ...] | None
    values: NDArray[Any]  #: ``[K]``, the class of each case, counted from 0, or the number
    rows: NDArray[np.intp]  #: ``[K]``, the rows of these cases, in the requested order

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None for a continuous label."""
        return None if self.classes is None else len(self.classes)

    def at(self, cases: NDArray[Any]) -> "Target":
        """The target of some of its cases, given as positions or as a mask, with all classes."""
        return Target(self.name, self.classes, self.values[cases], self.rows[cases])

    def only(self, keep: NDArray[np.bool_]) -> "Target":
        """The target of some of its cases, without classes that none of them has."""
        if self.classes is None:
            return self.at(keep)
        remaining, codes = np.unique(self.values[keep], return_inverse=True)
        return Target(self.name, tuple(self.classes[k] for k in remaining), codes, self.rows[keep])

    def patients_of_classes(self, groups: NDArray[Any], cases: NDArray[np.intp] | None = None) -> dict[str, int]:
        """The number of patients ``[K]`` with a case of each class; only ``cases`` count if they are given."""
        cases = np.arange(len(self.values)) if cases is None else cases
        return {
            name: len(np.unique(groups[cases][self.values[cases] == code]))
            for code, name in enumerate(self.classes or ())
        }

    def balanced_choice(self, count: int, seed: int) -> "Target":
        """Choose ``count`` cases at random, equally many per class as far as possible.

        With the same seed, a larger choice contains the smaller one.
        """
        order = np.random.default_rng(seed).permutation(len(self.rows))
        class_values = np.zeros(len(order)) if self.classes is None else self.values[order]
        place_in_class = np.empty(len(order), np.intp)
        for label in np.unique(class_values):
            place_in_class[class_values == label] = np.arange((class_values == label).sum())
        return self.at(np.sort(order[np.argsort(place_in_class, kind="stable")][:count]))


def are_classes(labels: Sequence[Any], kind: LabelKind = "auto") -> bool:
    """Whether labels are classes: text, booleans, two values, or few whole numbers; ``kind`` decides otherwise."""
    check_choice("kind", kind, LabelKind)
    if kind == "numbers" and not _are_numbers(labels):
        raise ConfigError("kind: some labels are text; choose classes, or correct the table")
    if kind != "auto":
        return kind == "classes"
    if not _are_numbers(labels) or any(isinstance(label, (bool, np.bool_)) for label in labels):
        return True
    values = {float(label) for label in labels}
    if len(values) <= 2:
        return True
    are_small = all(value.is_integer() and 0 <= value <= _LARGEST_CLASS for value in values)
    return are_small and len(values) <= min(MAX_VALUES, _MOST_DIFFERENT * len(labels))


def reason_against(labels: Sequence[Any], name: str) -> str | None:
    """Why a label is no target by default; None: it is one, as are numbers, and text with few classes."""
    present = [label for label, is_missing in zip(labels, missing(labels), strict=True) if not is_missing]
    counts = Counter(map(class_name, present))
    if len(counts) < 2:
        return "has one value" if counts else "is empty"
    if len(counts) > MAX_VALUES:
        is_number = _are_numbers(present)
        if _ID.search(name) or (is_number and len(counts) == len(present) == max(present) - min(present) + 1):
            return "is an id"
        return None if is_number else f"is text with {len(counts)} values"
    num_classes = sum(count >= _FEWEST_PER_CLASS for count in counts.values())
    if num_classes < 2 and not _are_numbers(present):
        return f"lacks two classes with {_FEWEST_PER_CLASS} cases"
    return None


def default_targets(labels: Mapping[str, Sequence[Any]]) -> list[str]:
    """The labels that are targets by default; the reasons against the others are logged."""
    reasons = {name: reason_against(values, name) for name, values in labels.items()}
    if why := ", ".join(f"{name} {reason}" for name, reason in reasons.items() if reason):
        logger.info("labels that are not predicted, unless targets names them: %s", shortened(why, 200))
    return [name for name, reason in reasons.items() if reason is None]


def read_target(
    labels: Sequence[Any], name: str, rows: NDArray[np.intp] | None = None, kind: LabelKind = "auto"
) -> Target:
    """Read a label as classes or numbers; see :func:`are_classes`.

    Args:
        labels: ``[N]``, numbers, booleans or text; None, NaN, blank text and words such as NA are missing. All of them
            count for whether the label is a number, not only those of ``rows``.
        name: name of the label.
        rows: the cases to use, in this order; None: all.
        kind: ``classes``, ``numbers``, or ``auto``.

    Raises:
        ConfigError: there is only one value, more than 20 different classes, or numbers are infinite or above 1e30.

    Example:
        >>> target = read_target(["ill", "well", None, "ill"], "state")
        >>> target.classes, target.values, target.rows
        (('ill', 'well'), array([0, 1, 0]), array([0, 1, 3]))
        >>> read_target(np.arange(20.0), "age").classes is None
        True
    """
    labels = list(labels)
    is_labelled = ~missing(labels)
    all_values = [labels[row] for row in np.flatnonzero(is_labelled)]
    requested = np.arange(len(labels)) if rows is None else rows
    labelled = requested[is_labelled[requested]]
    values = [labels[row] for row in labelled]
    classes = _varying_classes(all_values, values, name, len(requested))
    if not are_classes(all_values, kind):
        return Target(name, None, np.array(values, np.float64), labelled)
    if len(classes) > _MAX_CLASSES:
        raise ConfigError(f"target '{name}': has {len(classes)} different classes; choose another target")
    codes = np.array([classes.index(class_name(value)) for value in values], np.intp)
    return Target(name, classes, codes, labelled)


def read_line_target(labels: Sequence[Any], name: str, positive: Any = None, kind: LabelKind = "auto") -> Target:
    """Read labels as two classes, ``positive`` against the rest, or as numbers: more than two have an order."""
    labels = list(labels)
    rows = np.flatnonzero(~missing(labels))
    present = [labels[row] for row in rows]
    classes = _varying_classes(present, present, name, len(labels))
    if positive is not None and kind == "numbers":
        raise ConfigError(f"positive: target '{name}' is read as numbers; omit positive, or set kind to classes")
    if positive is None and (kind == "numbers" or len(classes) > 2):
        is_text = not _are_numbers(present)
        if is_text or kind == "classes":
            raise ConfigError(
                f"target '{name}': {'is text with' if is_text else 'has'} {len(classes)} classes ({_listed(classes)}); "
                "choose one of them as positive, to compare it with the rest"
            )
        return Target(name, None, np.array(present, np.float64), rows)
    positive_class = classes[-1] if positive is None else class_name(positive)
    if positive_class not in classes:
        raise ConfigError(f"positive: target '{name}' has no class '{positive_class}'; it has {_listed(classes)}")
    others = [other for other in classes if other != positive_class]
    negative = others[0] if len(others) == 1 else rest_of(positive_class)
    is_positive = np.array([class_name(value) == positive_class for value in present])
    return Target(name, (negative, positive_class), is_positive.astype(np.intp), rows)


def _varying_classes(labels: Sequence[Any], values: Sequence[Any], name: str, num_cases: int) -> tuple[str, ...]:
    """The classes of some values, in the order of numbers or text of all labels; those that may be one are logged."""
    is_number = _are_numbers(labels)
    if is_number and any(abs(value) > _LARGEST for value in labels):
        raise ConfigError(f"target '{name}': contains infinite numbers or some above 1e30; leave those labels empty")
    order: Callable[[Any], Any] = float if is_number else class_name
    names = list(dict.fromkeys(class_name(value) for value in sorted(labels, key=order)))
    counts = Counter(each.casefold() for each in names)
    alike = [each for each in names if counts[each.casefold()] > 1]
    if alike:
        logger.warning(
            "target '%s': %s differ only in upper and lower case, and are different classes; correct the table if they "
            "are one",
            name,
            _listed([f"'{each}'" for each in alike]),
        )
    present = {class_name(value) for value in values}
    classes = tuple(each for each in names if each in present)
    if len(classes) < 2:
        only = f", all '{classes[0]}'" if classes else ""
        raise ConfigError(f"target '{name}': {len(values)} of {num_cases} cases have it{only}; choose one that varies")
    return classes


def missing(labels: Sequence[Any]) -> NDArray[np.bool_]:
    """Return a mask ``[N]`` of the cases without a label: None, NaN, pandas' NA, and words as in tables."""
    import pandas as pd

    return np.array(
        [value.strip() in MISSING_WORDS if isinstance(value, str) else bool(pd.isna(value)) for value in labels], bool
    )


def class_name(value: Any) -> str:
    """A class as text, the same for 1 and 1.0, because a table with gaps stores integers as floats."""
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    return str(value).strip()


def rest_of(positive: str) -> str:
    """The name for all classes but one."""
    return f"not {positive}"


def far_off(values: Floats) -> NDArray[np.bool_]:
    """Find numbers ``[K]`` that are so far from the others that they are probably errors or codes."""
    is_far = _distance(values) > _FAR
    # of amounts, the tail of a log-normal distribution does not count
    if is_far.any() and (is_far | (values >= 0)).all():
        is_far[values > 0] &= _distance(np.log(values[values > 0])) > _FAR_AS_LOGARITHM
    return is_far


def copies_of(target: Target, features: Floats) -> NDArray[np.intp]:
    """Find the columns of features ``[K, D]`` that determine the target: monotonic in it, or codes of the classes."""
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


def _distance(values: Floats) -> Floats:
    """The distance from the median, in interquartile ranges."""
    low, median, high = np.percentile(values, [25, 50, 75])
    distance = np.abs(values - median)
    if not distance.any():
        return distance
    return distance / (high - low or np.median(distance[distance > 0]))  # the latter if most values are equal


def _are_numbers(labels: Sequence[Any]) -> bool:
    return all(isinstance(label, (Real, np.bool_)) for label in labels)


def _listed(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - _MOST_LISTED} more" if len(classes) > _MOST_LISTED else ""
    return ", ".join(classes[:_MOST_LISTED]) + more
