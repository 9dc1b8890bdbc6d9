"""The content of direction files. Every value is checked, because such files travel between people and machines."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import LatentStatistics

FORMAT, VERSION = "monai_diffae.direction", 2
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXTS = ("target", "model")
_NUMBERS = ("intercept", "offset", "score")
_POSITIVE = ("slope", "std", "regularisation")
_COUNTS = ("num_cases", "num_omitted")
_OTHERS = ("format", "version", "kind", "classes", "weight", "pattern", "statistics", "fitted_marks")
_ENDS = ("low", "high")
_KEYS = {*_OTHERS, *_ENDS, *_TEXTS, *_NUMBERS, *_POSITIVE, *_COUNTS}
_OPTIONAL = {"preprocessing"}


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
    differing = sorted(map(repr, (set(content) - _OPTIONAL) ^ _KEYS))
    if differing:
        raise ConfigError(f"keys are missing or unknown: {', '.join(differing)[:200]}; fit the direction again")
    _check_scalars(content)
    statistics = _statistics(content["statistics"])
    weight = _vector(content["weight"], "weight")
    _require(len(weight) == statistics.z_channels, "weight", f"{statistics.z_channels} numbers, like the statistics")
    _require(abs(float(np.linalg.norm(weight)) - 1) < 1e-6, "weight", "of length 1")
    pattern = _vector(content["pattern"], "pattern")
    _require(len(pattern) == len(weight), "pattern", f"{len(weight)} numbers, like the weight")
    _require(abs(float(pattern @ weight) - 1) < 1e-6, "pattern", "a vector whose dot product with the weight is 1")
    marks = content["fitted_marks"]
    _require(isinstance(marks, list) and all(map(_is_mark, marks)), "fitted_marks", "a list of three numbers per case")
    return {
        "fitted_marks": np.array(marks, np.float64).reshape(-1, 3),
        **{key: None if content[key] is None else float(content[key]) for key in _ENDS},
        **{key: content[key] for key in (*_TEXTS, *_COUNTS, "kind")},
        **{key: float(content[key]) for key in (*_NUMBERS, *_POSITIVE)},
        "preprocessing": content.get("preprocessing"),
        "classes": None if content["classes"] is None else tuple(content["classes"]),
        "weight": weight,
        "pattern": pattern,
        "statistics": statistics,
    }


def _check_scalars(content: Mapping[str, Any]) -> None:
    for key in _TEXTS:
        _require(isinstance(content[key], str) and content[key] != "", key, "some text")
    for key in (*_NUMBERS, *_POSITIVE):
        _require(_is_number(content[key]), key, "a finite number")
    for key in _ENDS:
        _require(content[key] is None or _is_number(content[key]), key, "a finite number or null")
    for key in _POSITIVE:
        _require(content[key] > 0, key, "above 0")
    for key in _COUNTS:
        _require(type(content[key]) is int and content[key] >= 0, key, "a whole number from 0")
    preprocessing = content.get("preprocessing")
    is_checksum = isinstance(preprocessing, str) and _SHA256.fullmatch(preprocessing) is not None
    _require(preprocessing is None or is_checksum, "preprocessing", "a SHA-256 or null")
    kind, classes = content["kind"], content["classes"]
    _require(kind in ("binary", "continuous"), "kind", "binary or continuous")
    is_pair = isinstance(classes, list) and len(classes) == 2 and all(isinstance(name, str) for name in classes)
    if kind == "binary":
        _require(is_pair and classes[0] != classes[1], "classes", "two names")
    else:
        _require(classes is None, "classes", "null, because the target is continuous")


def _statistics(content: object) -> LatentStatistics:
    if not isinstance(content, Mapping) or set(content) != {"mean", "std"}:
        raise ConfigError("statistics: must be mean and std; fit the direction again")
    return LatentStatistics(*(_vector(content[key], f"statistics: {key}") for key in ("mean", "std")))


def _vector(values: object, key: str) -> NDArray[Any]:
    if not isinstance(values, list) or not all(map(_is_number, values)):
        raise ConfigError(f"{key}: must be a list of finite numbers; fit the direction again")
    return np.array(values, np.float64)


def _is_mark(values: object) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(map(_is_number, values))


def _is_number(value: object) -> bool:
    """Return whether a value is a finite number: no boolean, and no integer beyond the range of floats."""
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _require(is_valid: bool, key: str, requirement: str) -> None:
    if not is_valid:
        raise ConfigError(f"{key}: must be {requirement}; fit the direction again")
