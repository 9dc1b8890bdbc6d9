"""Strengths of edits and traversals, in standard deviations of the training cases: their checks, names and titles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai_diffae.errors import ConfigError

STRENGTHS: tuple[float, ...] = (-3, -2, -1, 0, 1, 2, 3)
_MOST = 100


def strength_names(strengths: Sequence[float]) -> list[str]:
    """Return the parts of file names that stand for strengths.

    Raises:
        ConfigError: there are no strengths, one is not finite or far beyond all cases, or two have the same name.

    Example:
        >>> strength_names([-2, 0, 0.5])
        ['-2.00', '+0.00', '+0.50']
    """
    if not len(strengths) or not all(map(math.isfinite, strengths)):
        raise ConfigError(f"strengths: {list(strengths)} are not numbers; give some, such as -2 and 2")
    largest = max(strengths, key=abs)
    if abs(largest) > _MOST:
        raise ConfigError(f"strengths: {largest:g} is beyond {_MOST} standard deviations; choose from -3 to 3")
    names = [f"{strength:+.2f}" for strength in strengths]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ConfigError(
            f"strengths: two of them are {duplicate} when rounded to two digits, as in the images' names; omit one"
        )
    return names


def strength_titles(strengths: Sequence[float]) -> list[str]:
    """Return the titles of a picture's columns, one per strength.

    Example:
        >>> strength_titles([-2, 0, 0.5])
        ['-2', '0', '+0.5']
    """
    return [f"{strength:+g}" if strength else "0" for strength in strengths]
