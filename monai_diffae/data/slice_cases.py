"""Expand volumes into cases of single slices for 2D models, and gather the slices of each volume."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure
from monai_diffae.data.scans import read_shape
from monai_diffae.data.slices import AXES, Axis, check_axis
from monai_diffae.errors import CohortError, ConfigError, ScanError, quoted

LETTERS: dict[Axis, str] = {"sagittal": "x", "coronal": "y", "axial": "z"}
"""The letter before the slice's number in a case's id."""


def expand_slices(
    cases: Sequence[Case],
    *,
    axis: Axis = "axial",
    range: tuple[float, float] = (0.0, 1.0),
    step: int = 1,
) -> tuple[list[Case], list[Failure]]:
    """Expand each volume into one case per slice, reading headers only. 2D images pass unchanged.

    ``range`` is the part of the axis to use: (0.25, 0.75) is the middle half. Ids are such as ``case7_z041`` (x
    sagittal, y coronal, z axial). Volumes whose header cannot be read are failures.
    """
    check_axis(axis)
    slice_indices(1, range, step)  # an error about the arguments comes before a scan is read
    expanded: list[Case] = []
    failures: list[Failure] = []
    for case in cases:
        try:
            shape = read_shape(case.first_file)
        except ScanError as error:
            failures.append(Failure(case.id, case.file, str(error)))
            continue
        if len(shape) == 2:
            expanded.append(case)
            continue
        for k in slice_indices(shape[AXES[axis]], range, step):
            name = f"{LETTERS[axis]}{k:03d}"
            expanded.append(replace(case, id=f"{case.id}_{name}", file_name=f"{case.file_name}_{name}", slice_index=k))
    twice = next((id for id, count in Counter(case.id for case in expanded).items() if count > 1), None)
    if twice is not None:
        raise CohortError(f"the id {quoted(twice)} is that of a scan and of a slice of another scan; rename one")
    return expanded, failures


def slice_indices(length: int, range: tuple[float, float] = (0.0, 1.0), step: int = 1) -> list[int]:
    """The slices of a volume in a part of its axis, of which (0.25, 0.75) is the middle half: every ``step``-th.

    Example:
        >>> slice_indices(10, (0.25, 0.75), 2)
        [2, 4, 6]
    """
    low, high = range
    if not 0 <= low < high <= 1 or step < 1:
        raise ConfigError(f"slices: range {tuple(range)} must lie within 0..1, and step {step} must be at least 1")
    first, stop = math.floor(low * length), math.ceil(high * length)
    return list(itertools.islice(itertools.count(first, step), math.ceil((stop - first) / step)))


def gather_slices(expanded: Sequence[Case], failures: Sequence[Failure]) -> tuple[dict[str, list[Case]], list[Failure]]:
    """Gather the slices of each volume that :func:`expand_slices` expanded. One failed slice fails the volume.

    A 2D image counts as a volume of one slice. The slices of each complete volume are by its id; each of the other
    volumes has one failure.

    Example:
        >>> from pathlib import Path
        >>> slices = [Case(f"a_z00{k}", {"image": Path("a.nii")}, "a", slice_index=k) for k in (4, 6)]
        >>> gather_slices(slices, [])[0].keys()
        dict_keys(['a'])
        >>> gather_slices(slices, [Failure("a_z006", "a.nii", "constant")])
        ({}, [Failure(case_id='a', file='a.nii', reason='slice 6: constant')])
    """
    volumes: dict[str, list[Case]] = {}
    for case in expanded:
        volumes.setdefault(_volume_id(case), []).append(case)
    slices = {case.id: case for case in expanded if case.slice_index is not None}
    failed: dict[str, Failure] = {}
    for failure in failures:
        if failure.case_id in slices:
            case = slices[failure.case_id]
            failure = replace(failure, case_id=_volume_id(case), reason=f"slice {case.slice_index}: {failure.reason}")
        failed.setdefault(failure.case_id, failure)
    return {name: cases for name, cases in volumes.items() if name not in failed}, list(failed.values())


def whole_scan(case: Case) -> Case:
    """The scan that a slice was taken from, without its slice; a whole image unchanged.

    Example:
        >>> from pathlib import Path
        >>> whole_scan(Case("a_z004", {"image": Path("a.nii")}, "p", slice_index=4)).id
        'a'
    """
    if case.slice_index is None:
        return case
    return replace(case, id=_volume_id(case), file_name=case.file_name.rpartition("_")[0], slice_index=None)


def _volume_id(case: Case) -> str:
    """The id of a slice's volume, or a whole image's own id."""
    return case.id if case.slice_index is None else case.id.rpartition("_")[0]
