"""Labels as targets of a linear model: two classes or a number, and which cases have a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError

Kind = Literal["binary", "continuous"]
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


def read_target(labels: Sequence[Any], name: str, positive: Any = None) -> Target:
    """Read labels as two classes or as a number.

    Labels with two values are two classes, and so are labels with more values if ``positive`` is given. Numbers with
    more than two values are continuous.

    Args:
        labels: ``[N]``, numbers, booleans or text; None, NaN and blank text mean that a case has no label.
        name: name of the label, for messages.
        positive: the positive class; with more than two values, all other values form the negative class. None: the
            larger number, or the text that sorts last.

    Raises:
        ConfigError: all labels are the same, there are more than two text values and no ``positive``, ``positive`` is
            not one of the values, or a number is infinite.

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
    is_number = all(isinstance(value, (Real, np.bool_)) for value in present)
    if is_number and not np.isfinite(np.array(present, np.float64)).all():
        raise ConfigError(f"target '{name}': contains infinite numbers; leave those labels empty")
    order: Callable[[Any], Any] = float if is_number else class_name
    classes = list(dict.fromkeys(class_name(value) for value in sorted(present, key=order)))
    if len(classes) < 2:
        only = f", all '{classes[0]}'" if classes else ""
        raise ConfigError(
            f"target '{name}': {len(present)} of {len(labels)} cases have it{only}; two classes or numbers that vary "
            "are needed"
        )
    if positive is None and len(classes) > 2:
        if not is_number:
            raise ConfigError(
                f"target '{name}': is text with {len(classes)} classes ({_listed(classes)}); "
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
    """Return a mask ``[N]`` of the cases without a label: None, NaN, pandas' NA, and blank text.

    Example:
        >>> missing([1.0, None, float("nan"), "", "a"])
        array([False,  True,  True,  True, False])
    """
    import pandas as pd

    return np.array([bool(pd.isna(value)) or (isinstance(value, str) and not value.strip()) for value in labels], bool)


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


def _listed(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - _MOST_LISTED} more" if len(classes) > _MOST_LISTED else ""
    return ", ".join(classes[:_MOST_LISTED]) + more
