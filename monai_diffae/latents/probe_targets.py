"""Labels as a probe takes them: classes or a number, which cases have one, and which classes are too small."""

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
        ConfigError: one value only, text of more than 20 values, or numbers that are infinite.

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
    if is_number and not np.isfinite(np.array(known, np.float64)).all():
        raise ConfigError(f"target '{name}': holds values that are not finite; leave those labels empty")
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
