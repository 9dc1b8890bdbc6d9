"""The content of direction files. Every value is checked, because such files travel between people and machines."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import LatentStatistics

FORMAT, VERSION = "monai_diffae.direction", 2


def checked_content(content: object) -> dict[str, Any]:
    """Return the arguments of a :class:`~monai_diffae.latents.Direction` from the content of a JSON file.

    Raises:
        ConfigError: a key is missing or unknown, the version differs, or a value has the wrong type, length or range.

    Example:
        >>> checked_content([1, 2])
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: not a direction; make one with monai-diffae fit-direction
    """
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ConfigError("not a direction; make one with monai-diffae fit-direction")
    if content.get("version") != VERSION:
        raise ConfigError(
            f"version: this release reads directions of version {VERSION}, not {content.get('version')!r:.20}; "
            "fit the direction again"
        )
    differing = sorted(map(repr, set(content) - {"format", "version", "preprocessing"} ^ set(_CHECKS)))
    if differing:
        raise ConfigError(f"keys are missing or unknown: {', '.join(differing)[:200]}; fit the direction again")
    for key, (is_valid, requirement) in _CHECKS.items():
        _require(is_valid(content[key]), key, requirement)
    values = {
        key: float(value) if type(value) is int and key not in _COUNTS else value for key, value in content.items()
    }
    values |= {key: np.array(content[key], np.float64) for key in ("weight", "pattern")}
    num, classes, preprocessing = len(values["weight"]), content["classes"], content.get("preprocessing")
    statistics = {key: content["statistics"][key] for key in ("mean", "std")}
    _require({len(each) for each in statistics.values()} == {num}, "weight", "as long as the statistics")
    _require(len(values["pattern"]) == num, "pattern", f"{num} numbers, like the weight")
    _require(abs(float(np.linalg.norm(values["weight"])) - 1) < 1e-6, "weight", "of length 1")
    is_pattern = abs(float(values["pattern"] @ values["weight"]) - 1) < 1e-6
    _require(is_pattern, "pattern", "a vector whose dot product with the weight is 1")
    _require((classes is None) == (content["kind"] == "continuous"), "classes", "null if the target is continuous")
    is_checksum = isinstance(preprocessing, str) and re.fullmatch(r"[0-9a-f]{64}", preprocessing) is not None
    _require(preprocessing is None or is_checksum, "preprocessing", "a SHA-256 or null")
    return {
        **{key: value for key, value in values.items() if key not in ("format", "version")},
        "classes": None if classes is None else tuple(classes),
        "fitted_marks": np.array(content["fitted_marks"], np.float64).reshape(-1, 3),
        "statistics": LatentStatistics(*(np.array(each, np.float64) for each in statistics.values())),
    }


def _is_number(value: object) -> bool:
    """Return whether a value is a finite number: no boolean, and no integer beyond the range of floats."""
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_vector(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _require(is_valid: bool, key: str, requirement: str) -> None:
    if not is_valid:
        raise ConfigError(f"{key}: must be {requirement}; fit the direction again")


_COUNTS = ("num_cases", "num_omitted")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("target", "model"), (lambda value: isinstance(value, str) and value != "", "some text")),
    **dict.fromkeys(("intercept", "offset", "score"), (_is_number, "a finite number")),
    **dict.fromkeys(("low", "high"), (lambda value: value is None or _is_number(value), "a finite number or null")),
    **dict.fromkeys(("slope", "std", "regularisation"), (lambda value: _is_number(value) and value > 0, "above 0")),
    **dict.fromkeys(_COUNTS, (lambda value: type(value) is int and value >= 0, "a whole number from 0")),
    **dict.fromkeys(("weight", "pattern"), (_is_vector, "a list of finite numbers")),
    "kind": (lambda value: value in ("binary", "continuous"), "binary or continuous"),
    "classes": (
        lambda value: (
            value is None
            or (
                isinstance(value, list)
                and len({*map(str, value)}) == 2
                and all(isinstance(name, str) for name in value)
            )
        ),
        "two names or null",
    ),
    "statistics": (
        lambda value: (
            isinstance(value, Mapping) and set(value) == {"mean", "std"} and all(map(_is_vector, value.values()))
        ),
        "mean and std, lists of finite numbers",
    ),
    "fitted_marks": (
        lambda value: isinstance(value, list) and all(_is_vector(row) and len(row) == 3 for row in value),
        "a list of three numbers per case",
    ),
}
