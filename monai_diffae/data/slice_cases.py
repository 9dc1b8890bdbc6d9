"""Volumes as cohorts of slices, for 2D models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure
from monai_diffae.data.scans import read_shape
from monai_diffae.data.slices import AXES, Axis
from monai_diffae.errors import ConfigError, ScanError

LETTERS: dict[Axis, str] = {"sagittal": "x", "coronal": "y", "axial": "z"}


def expand_slices(
    cases: Sequence[Case],
    *,
    axis: Axis = "axial",
    range: tuple[float, float] = (0.0, 1.0),
    step: int = 1,
) -> tuple[list[Case], list[Failure]]:
    """One case for each slice of each volume; only headers are read. 2D images pass unchanged.

    Args:
        cases: the cohort.
        axis: the direction that the slices are stacked in, see :func:`~monai_diffae.data.slices.slice_volume`.
        range: the part of the axis that is used: (0.25, 0.75) is the middle half.
        step: every ``step``-th slice of that part.

    Returns:
        The cases, with ids such as ``case7_z041`` (x sagittal, y coronal, z axial), and those whose header cannot
        be read.

    Raises:
        ConfigError: the axis, range or step makes no sense.
    """
    low, high = range
    if axis not in AXES:
        raise ConfigError(f"axis: '{axis}' is not one of {', '.join(AXES)}")
    if not 0 <= low < high <= 1 or step < 1:
        raise ConfigError(f"slices: range {tuple(range)} must lie within 0..1, and step {step} be at least 1")
    expanded: list[Case] = []
    failures: list[Failure] = []
    for case in cases:
        image = case.images["image"]
        try:
            shape = read_shape(image if isinstance(image, Path) else image[0])
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
            continue
        if len(shape) == 2:
            expanded.append(case)
            continue
        length = shape[AXES[axis]]
        first, stop = math.floor(low * length), math.ceil(high * length)
        for k in itertools.islice(itertools.count(first, step), math.ceil((stop - first) / step)):
            expanded.append(replace(case, id=f"{case.id}_{LETTERS[axis]}{k:03d}", slice_index=k))
    return expanded, failures
