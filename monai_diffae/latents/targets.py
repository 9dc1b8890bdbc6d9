"""What a label is, classes or a number, and which cases have one. The same rule holds wherever labels are read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.policies import MISSING_WORDS

logger = logging.getLogger(__name__)

Kind = Literal["binary", "continuous"]
LabelKind = Literal["auto", "classes", "numbers"]

MAX_VALUES, _LARGEST_CLASS = 10, 20  # of whole numbers that are classes
_MOST_DIFFERENT = 2 / 3  # of the labels
_LARGEST = 1e30  # larger values overflow in boosting, whose gradients are in single precision
_MOST_LISTED = 10


@dataclass(frozen=True, eq=False)
class Target:
    """The labels of the cases that have one.

    Attributes:
        kind: ``binary`` or ``continuous``.
        classes: names of the negative and the positive class; None for a continuous target.
        values: ``[K]``: 1 for the positive class and 0 for the negative one, or the number.
        rows: ``[K]``, the row numbers of these cases, ascending.
    """

    kind: Kind
    classes: tuple[str, str] | None
    values: NDArray[np.float64]
    rows: NDArray[np.intp]


def are_classes(labels: Sequence[Any], kind: LabelKind = "auto") -> bool:
    """Whether labels are classes, or numbers.

    Text, booleans and labels with two values are classes. Whole numbers from 0 to 20 are classes if they have at most
    10 different values, and at most two thirds as many values as there are labels, so that the ages of five people are
    numbers. All others are numbers.

    Args:
        labels: the labels of the cases that have one.
        kind: ``classes`` or ``numbers`` instead of this rule.

    Raises:
        ConfigError: the kind is unknown, or is ``numbers``, but a label is text.

    Example:
        >>> are_classes([0, 1, 2, 1, 0]), are_classes([31, 45, 52, 60, 31]), are_classes([1.5, 3, 3])
        (True, False, True)
    """
    if kind not in get_args(LabelKind):
        raise ConfigError(f"kind: {kind!r} is not one of {', '.join(get_args(LabelKind))}")
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


def class_names(labels: Sequence[Any], name: str) -> list[str]:
    """The names of the classes of labels, in the order of numbers or text; those that may be one are logged.

    Args:
        labels: the labels of the cases that have one.
        name: name of the label.

    Raises:
        ConfigError: a number is infinite or above 1e30.
    """
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
            "are one", name, _listed([f"'{each}'" for each in alike]),
        )  # fmt: skip
    return names


def read_target(labels: Sequence[Any], name: str, positive: Any = None, kind: LabelKind = "auto") -> Target:
    """Read labels as two classes or as a number.

    Labels with two values are classes, and so are all labels with ``positive``. Numbers with more values are a number,
    also those that :func:`are_classes` takes for classes, because these are in an order.

    Args:
        labels: ``[N]``, numbers, booleans or text; None, NaN, blank text and words such as NA mean that a case has no
            label.
        name: name of the label, for messages.
        positive: the positive class; with more than two values, all other values form the negative class. None: the
            larger number, or the text that sorts last.
        kind: ``classes`` or ``numbers`` instead of this rule.

    Raises:
        ConfigError: all labels are the same, there are more than two classes and no ``positive``, ``positive`` is not
            one of the values or ``kind`` is ``numbers``, or a number is infinite.

    Example:
        >>> target = read_target(["ill", "well", None, "ill"], "state", positive="ill")
        >>> target.kind, target.classes, target.values, target.rows
        ('binary', ('well', 'ill'), array([1., 0., 1.]), array([0, 1, 3]))
        >>> read_target([1, 2, 3, 2], "grade", positive=3).classes
        ('not 3', '3')
    """
    is_missing = missing(labels)
    rows = np.flatnonzero(~is_missing)
    present = [label for label, is_none in zip(labels, is_missing, strict=True) if not is_none]
    classes = class_names(present, name)
    if len(classes) < 2:
        only = f", all '{classes[0]}'" if classes else ""
        raise ConfigError(
            f"target '{name}': {len(present)} of {len(labels)} cases have it{only}; two classes or numbers that vary "
            "are needed"
        )
    if positive is not None and kind == "numbers":
        raise ConfigError(f"positive: target '{name}' is read as numbers; omit positive, or set kind to classes")
    if positive is None and (kind == "numbers" or len(classes) > 2):
        is_text = not _are_numbers(present)
        if is_text or kind == "classes":
            raise ConfigError(
                f"target '{name}': {'is text with' if is_text else 'has'} {len(classes)} classes ({_listed(classes)}); "
                "choose one of them as positive, to compare it with the rest"
            )
        return Target("continuous", None, np.array(present, np.float64), rows)
    positive_class = classes[-1] if positive is None else class_name(positive)
    if positive_class not in classes:
        raise ConfigError(f"positive: target '{name}' has no class '{positive_class}'; it has {_listed(classes)}")
    others = [other for other in classes if other != positive_class]
    negative = others[0] if len(others) == 1 else rest_of(positive_class)
    is_positive = [float(class_name(value) == positive_class) for value in present]
    return Target("binary", (negative, positive_class), np.array(is_positive), rows)


def missing(labels: Sequence[Any]) -> NDArray[np.bool_]:
    """Return a mask ``[N]`` of the cases without a label: None, NaN, pandas' NA, and words as in tables.

    Example:
        >>> missing([1.0, None, float("nan"), " ", "NA", "a"])
        array([False,  True,  True,  True,  True, False])
    """
    import pandas as pd

    return np.array([
        value.strip() in MISSING_WORDS if isinstance(value, str) else bool(pd.isna(value)) for value in labels
    ], bool)  # fmt: skip


def class_name(value: Any) -> str:
    """Return a class as text, the same for 1 and 1.0, because a table with gaps stores integers as floats.

    Example:
        >>> class_name(1.0), class_name(np.int64(1)), class_name(True), class_name(" ill ")
        ('1', '1', 'True', 'ill')
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    return str(value).strip()


def rest_of(positive: str) -> str:
    """Return the name for all classes but one."""
    return f"not {positive}"


def balanced_choice(target: Target, count: int, seed: int) -> Target:
    """Choose ``count`` of a target's cases at random, equally many per class as far as possible.

    With the same seed, a larger choice contains the smaller one.
    """
    order = np.random.default_rng(seed).permutation(len(target.rows))
    class_values = target.values[order] if target.kind == "binary" else np.zeros(len(order))
    place_in_class = np.empty(len(order), np.intp)
    for label in np.unique(class_values):
        place_in_class[class_values == label] = np.arange((class_values == label).sum())
    selected = np.sort(order[np.argsort(place_in_class, kind="stable")][:count])
    return Target(target.kind, target.classes, target.values[selected], target.rows[selected])


def _are_numbers(labels: Sequence[Any]) -> bool:
    return all(isinstance(label, (Real, np.bool_)) for label in labels)


def _listed(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - _MOST_LISTED} more" if len(classes) > _MOST_LISTED else ""
    return ", ".join(classes[:_MOST_LISTED]) + more
