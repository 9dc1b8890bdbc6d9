"""Whether the planes of a DICOM volume are evenly spaced, planned with several spacings, or incomplete.

Head CTs, for instance, are often planned with thin slices below and thick ones above. A missing slice leaves a single
wide gap instead, or a step in the slices' numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.formats.scan import Doubt, problem

FloatArray = NDArray[np.float64]

_EVEN = 0.1  # tolerance for even spacing, as a fraction of the distance between planes
_WIDE = 1.5  # a gap that is this many times wider than the fine ones
_PLANNED = 3  # wide gaps in a row, at least; fewer are taken for missing slices
_FINE_FRACTION = 0.1  # at least this fraction of the gaps is as narrow as the fine gap


def place_planes(path: Path, heights: FloatArray, numbers: Sequence[int | None]) -> FloatArray:
    """Compute the positions of planes in an evenly spaced volume.

    Args:
        path: the scan, for messages.
        heights: positions of the planes along their normal in mm, ascending.
        numbers: their InstanceNumbers.

    Returns:
        Their positions in units of the volume's planes: 0, 1, 2, ... if they are evenly spaced. Otherwise the volume
        has about the spacing of the finest planes (a few gaps may be narrower), and only the first and the last plane
        lie at whole numbers.

    Raises:
        ScanError: slices are missing or duplicated.

    Example:
        >>> heights = np.array([0.0, 2, 4, 6, 8, 12, 16, 20])
        >>> place_planes(Path("ct"), heights, range(8)).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0]
    """
    gaps = np.diff(heights)
    if gaps.min() < max(0.01 * float(np.median(gaps)), 1e-3):
        raise problem(
            path, "two of its slices have the same position (duplicates, or 4D)", "keep one file per position"
        )
    fine = _fine_gap(gaps)
    _check_missing(path, gaps, fine, numbers)
    even = np.linspace(heights[0], heights[-1], len(heights))
    if np.abs(heights - even).max() <= _EVEN * float(np.median(gaps)):
        return np.arange(len(heights), dtype=np.float64)
    extent = heights - heights[0]
    places: FloatArray = extent / extent[-1] * round(extent[-1] / fine)
    return places


def uneven_doubt(gaps: FloatArray, spacing_mm: float) -> Doubt:
    """The doubt about unevenly spaced slices, which are resampled to ``spacing_mm``."""
    wrong = f"its slices are unevenly spaced ({gaps.min():.3g} to {gaps.max():.3g} mm)"
    return Doubt(
        "uneven",
        wrong,
        f"they are resampled to {spacing_mm:.3g} mm",
        "accept that (uneven: resample), or omit it",
    )


def incomplete_doubts(numbers: Sequence[int | None], declared: int) -> Iterator[Doubt]:
    """Yield a doubt if a series has fewer slices than its header declares, or than its highest InstanceNumber.

    Positions cannot show that the first or last slice of a series is missing.

    Args:
        numbers: the InstanceNumbers of its slices.
        declared: the number of slices in its header; 0 if it declares none.

    Example:
        >>> [doubt.wrong for doubt in incomplete_doubts([2, 3, 4], 0)]
        ['it has 3 slices, but their numbers reach 4']
    """
    highest = max((number for number in numbers if number is not None), default=0)
    for count, source in ((declared, "its header declares"), (highest, "their numbers reach")):
        if count > len(numbers):
            wrong = f"it has {len(numbers)} slices, but {source} {count}"
            yield Doubt("incomplete", wrong, "slices may be missing", "copy the whole series again")
            return


def _fine_gap(gaps: FloatArray) -> float:
    """The finest gap, apart from a few exceptions that are narrower."""
    num_exceptions = 0 if len(gaps) <= _PLANNED else max(1, int(_FINE_FRACTION * len(gaps)))
    return float(np.sort(gaps)[num_exceptions])


def _check_missing(path: Path, gaps: FloatArray, fine: float, numbers: Sequence[int | None]) -> None:
    """Raise an error if wide gaps are too few to be planned, or if numbers are missing there."""
    is_wide = gaps > _WIDE * fine
    runs = [len([*run]) for wide, run in groupby(is_wide) if wide]
    if runs and (min(runs) < _PLANNED or _numbers_jump(is_wide, numbers)):
        gap = f"{gaps.max():.3g} mm, but others are {fine:.3g} mm"
        raise problem(path, f"a slice is missing (a gap of {gap})", "copy the whole series again")


def _numbers_jump(is_wide: NDArray[np.bool_], numbers: Sequence[int | None]) -> bool:
    """Whether the slices' numbers differ by more across a wide gap than across the others."""
    if any(number is None for number in numbers):
        return False
    steps = np.abs(np.diff(np.array(numbers, np.int64)))
    return bool(steps[is_wide].max() > np.median(steps[~is_wide]))
