"""Labels as a linear model takes them: two classes or a number, and which cases have one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError

Kind = Literal["binary", "continuous"]
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Target:
    """A label of the cases that have it.

    Attributes:
        kind: ``binary`` or ``continuous``.
        classes: the names of the negative and the positive class; None of a continuous one.
        values: ``[K]``: 1 for the positive class and 0 for the negative one, or the number.
        rows: ``[K]``, which cases these are, ascending.
    """

    kind: Kind
    classes: tuple[str, str] | None
    values: NDArray[np.float64]
    rows: NDArray[np.intp]


def read_target(labels: Sequence[Any], name: str, positive: Any = None) -> Target:
    """What a label is: with two values, or with ``positive``, two classes; a number with more values continuous.

    Args:
        labels: ``[N]``, numbers, booleans or text; None, NaN and blank text stand for no label.
        name: of the label, for messages.
        positive: the positive class; with more than two values it is set against all others. The larger number or the
            text that sorts last when None.

    Raises:
        ConfigError: one value only, text of more than two values without ``positive``, no such class, or numbers that
            are infinite.

    Example:
        >>> target = read_target(["ill", "well", None, "ill"], "state", positive="ill")
        >>> target.kind, target.classes, target.values, target.rows
        ('binary', ('well', 'ill'), array([1., 0., 1.]), array([0, 1, 3]))
        >>> read_target([1, 2, 3, 2], "grade", positive=3).classes
        ('not 3', '3')
    """
    is_missing = missing(labels)
    rows = np.flatnonzero(~is_missing)
    known = [label for label, is_none in zip(labels, is_missing, strict=True) if not is_none]
    is_number = all(isinstance(value, (Real, np.bool_)) for value in known)
    order: Callable[[Any], Any] = float if is_number else class_name
    classes = list(dict.fromkeys(class_name(value) for value in sorted(known, key=order)))
    if len(classes) < 2:
        only = f", all '{classes[0]}'" if classes else ""
        raise ConfigError(
            f"target '{name}': {len(known)} of {len(labels)} cases have it{only}; two classes or numbers that vary "
            "are needed"
        )
    if positive is None and len(classes) > 2:
        if not is_number:
            raise ConfigError(
                f"target '{name}': is text of {len(classes)} classes ({_listed(classes)}); "
                "choose one with positive, to set it against the rest"
            )
        values = np.array(known, np.float64)
        if not np.isfinite(values).all():
            raise ConfigError(f"target '{name}': holds infinite numbers; leave those labels empty")
        return Target("continuous", None, values, rows)
    chosen = classes[-1] if positive is None else class_name(positive)
    if chosen not in classes:
        raise ConfigError(f"target '{name}': there is no class '{chosen}' to be positive; it has {_listed(classes)}")
    others = [other for other in classes if other != chosen]
    negative = others[0] if len(others) == 1 else rest_of(chosen)
    is_positive = [float(class_name(value) == chosen) for value in known]
    return Target("binary", (negative, chosen), np.array(is_positive), rows)


def missing(labels: Sequence[Any]) -> NDArray[np.bool_]:
    """Which labels are none: None, NaN, pandas' NA, and blank text; ``[N]``.

    Example:
        >>> missing([1.0, None, float("nan"), "", "a"])
        array([False,  True,  True,  True, False])
    """
    import pandas as pd

    return np.array([bool(pd.isna(value)) or (isinstance(value, str) and not value.strip()) for value in labels], bool)


def class_name(value: Any) -> str:
    """A class as text, the same for the number 1 and 1.0, since a table with gaps holds integers as floats.

    Example:
        >>> class_name(1.0), class_name(np.int64(1)), class_name(True), class_name(" ill ")
        ('1', '1', 'True', 'ill')
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    return str(value).strip()


def rest_of(positive: str) -> str:
    """The name of all classes but one."""
    return f"not {positive}"


def balanced_choice(target: Target, count: int, seed: int) -> Target:
    """Only ``count`` of a target's cases, of both classes alike as far as there are as many.

    With the same seed, a larger choice holds the smaller one.
    """
    order = np.random.default_rng(seed).permutation(len(target.rows))
    is_class = target.values[order] if target.kind == "binary" else np.zeros(len(order))
    place_in_class = np.empty(len(order), np.intp)
    for label in np.unique(is_class):
        place_in_class[is_class == label] = np.arange((is_class == label).sum())
    kept = np.sort(order[np.argsort(place_in_class, kind="stable")][:count])
    return Target(target.kind, target.classes, target.values[kept], target.rows[kept])


def _listed(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
    return ", ".join(classes[:_SHOWN]) + more
