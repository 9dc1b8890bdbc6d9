"""Where the planes of a DICOM volume lie, and whether they form one evenly spaced stack.

A plane is a file of a series, or a frame of an enhanced multi-frame file. Nothing is guessed: planes without a
position, unevenly spaced planes, and planes that do not belong together are errors. A sheared stack (from a tilted
gantry, where each plane is shifted against the one before) is straightened with a warning.
"""

# tested in tests/data/test_dicom_planes.py

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from scipy import ndimage

from monai_diffae.data.formats.itk import LPS_TO_RAS
from monai_diffae.data.formats.scan import check_affine, check_budget, problem

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]

_SHARED, _FRAMES = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_PLACE = {  # the tags that say where a plane lies: how many numbers each has, and its functional group
    "ImagePositionPatient": (3, "PlanePositionSequence"),
    "ImageOrientationPatient": (6, "PlaneOrientationSequence"),
    "PixelSpacing": (2, "PixelMeasuresSequence"),
}
_VALUES = ("RescaleSlope", "RescaleIntercept")
_SAME_DIRECTION = 2e-3  # 0.1 degrees; scanners round to 4 decimals or more
_EVEN = 0.1  # tolerance for even spacing, as a fraction of the distance between planes
_LEAN = 0.5  # voxels between the first and the last plane: a smaller shift is no tilt


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane, in DICOM's own axes (LPS).

    Attributes:
        position: centre of its first voxel, in mm.
        directions: 3x2, unit vectors along a row and along a column.
        spacing: mm between the voxels of a row, and of a column.
        rescale: slope and intercept from stored values to the scan's values, for frames; otherwise 1 and 0.
    """

    position: FloatArray
    directions: FloatArray
    spacing: FloatArray
    rescale: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Stack:
    """Planes as a volume ``[X, Y, Z]``.

    Attributes:
        order: indices of the given planes, sorted along the normal.
        sizes: size of the volume, after straightening if it is tilted.
        affine: affine of the volume, to mm in RAS+.
        lean: shift of each plane against the one before, in voxels along x and y; zeros without a tilt.
    """

    order: list[int]
    sizes: tuple[int, int, int]
    affine: FloatArray
    lean: FloatArray


def read_planes(path: Path) -> list[Plane]:
    """Read the planes of a file: one, or one per frame.

    Raises:
        ScanError: the tags do not say where a plane lies.
    """
    with disable_value_validation():
        dataset = pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=[*_PLACE, "NumberOfFrames", _SHARED, _FRAMES]
        )
        if int(dataset.get("NumberOfFrames") or 1) == 1 and _FRAMES not in dataset:
            return [_plane(path, [dataset])]
        shared, frames = dataset.get(_SHARED) or [], dataset.get(_FRAMES) or []
        if not frames:
            wrong = "its frames have no positions (it is a film, or of an old kind)"
            raise problem(path, wrong, "save them as slices, or as NIfTI")
        return [_plane(path, [frame, *shared]) for frame in frames]


def _plane(path: Path, groups: list[pydicom.Dataset]) -> Plane:
    """The plane that is described in ``groups``; for each tag the first group that has it is used."""
    place = {}
    for keyword, (count, group) in _PLACE.items():
        numbers = _numbers(groups, keyword, group)
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise problem(path, f"its position is unknown (no {keyword})", "export it again, with that tag")
        place[keyword] = np.array(numbers)
    directions = place["ImageOrientationPatient"].reshape(2, 3).T
    if np.abs(directions.T @ directions - np.eye(2)).max() > 0.01:
        raise problem(path, "its ImageOrientationPatient is not two perpendicular directions", "repair that tag")
    slope, intercept = (_numbers(groups, keyword, "PixelValueTransformationSequence") for keyword in _VALUES)
    return Plane(
        place["ImagePositionPatient"],
        directions / np.linalg.norm(directions, axis=0),
        place["PixelSpacing"][::-1],
        (slope[0] if slope else 1.0, intercept[0] if intercept else 0.0),
    )


def _numbers(groups: list[pydicom.Dataset], keyword: str, group: str) -> list[float]:
    for dataset in groups:
        inner = dataset.get(group) or [dataset]
        try:
            return [float(v) for v in np.atleast_1d(inner[0][keyword].value)]
        except (KeyError, TypeError, ValueError):
            continue
    return []


def make_stack(path: Path, planes: list[Plane], columns: int, rows: int) -> Stack:
    """Sort planes of ``rows`` x ``columns`` voxels into a volume.

    Args:
        path: the scan, for messages.
        planes: two or more, in any order.
        columns: voxels in a row of a plane, the volume's X.
        rows: voxels in a column of a plane, the volume's Y.

    Raises:
        ScanError: planes are missing, duplicated or unevenly spaced, or differ in orientation or spacing.
    """
    first = planes[0]
    if any(np.abs(p.directions - first.directions).max() > _SAME_DIRECTION for p in planes):
        raise problem(path, "its slices have different orientations", "split localisers from the volume")
    if any(not np.allclose(p.spacing, first.spacing, rtol=1e-3) for p in planes):
        raise problem(path, "its slices have different PixelSpacings", "keep the files of one volume only")
    normal = np.cross(*first.directions.T)
    order = sorted(range(len(planes)), key=lambda k: float(planes[k].position @ normal))
    points = np.array([planes[k].position for k in order])
    step = (points[-1] - points[0]) / (len(points) - 1)
    _check_even(path, points, normal, float(first.spacing.min()))
    affine = np.eye(4)
    affine[:3, :2], affine[:3, 2], affine[:3, 3] = first.directions * first.spacing, step, points[0]
    lean = first.directions.T @ step / first.spacing
    sizes = [columns, rows, len(planes)]
    total = lean * (len(points) - 1)
    if np.abs(total).max() > _LEAN:
        affine[:3, 2] = (step @ normal) * normal
        affine[:, 3] = affine @ [*np.minimum(total, 0), 0, 1]
        sizes[:2] = [n + math.ceil(abs(t) - 1e-3) for n, t in zip(sizes[:2], total, strict=True)]
    else:
        lean = np.zeros(2)
    affine = LPS_TO_RAS @ affine
    check_affine(path, affine)
    check_budget(path, sizes)
    return Stack(order, (sizes[0], sizes[1], sizes[2]), affine, lean)


def _check_even(path: Path, points: FloatArray, normal: FloatArray, voxel_mm: float) -> None:
    """Check that the planes' positions ``points``, sorted along ``normal``, are evenly spaced on a line."""
    steps = np.diff(points @ normal)
    usual = float(np.median(steps))
    if steps.min() < max(0.01 * usual, 1e-3):
        raise problem(
            path, "two of its slices have the same position (duplicates, or 4D)", "keep one file per position"
        )
    if steps.max() > 1.5 * usual:
        gap = f"{steps.max():.3g} mm, but others are {usual:.3g} mm"
        raise problem(path, f"a slice is missing (a gap of {gap})", "copy the whole series again")
    deviation = points - np.linspace(points[0], points[-1], len(points))
    along_normal = deviation @ normal
    if np.abs(along_normal).max() > _EVEN * usual:
        step_range = f"{steps.min():.3g} to {steps.max():.3g} mm"
        raise problem(path, f"its slices are unevenly spaced ({step_range})", "resample it to an even spacing")
    shift = float(np.linalg.norm(deviation - along_normal[:, None] * normal, axis=1).max())
    if shift > _LEAN * voxel_mm:
        raise problem(path, f"its slices are shifted against each other (by {shift:.3g} mm)", "align them first")


def straighten(path: Path, array: NDArray[np.float32], stack: Stack) -> NDArray[np.float32]:
    """Straighten a tilted stack: shift each plane to its position, by linear interpolation within the plane.

    Args:
        path: the scan, for the warning.
        array: ``[C, X, Y, Z]``, the planes in the stack's order.
        stack: where the planes lie.

    Returns:
        The volume ``[C, *stack.sizes]``, with the array's smallest value where there is no plane. If there is no tilt,
        ``array`` itself.
    """
    if not stack.lean.any():
        return array
    mm = np.linalg.norm(stack.affine[:3, :3], axis=0)
    angle = math.degrees(math.atan2(np.linalg.norm(stack.lean * mm[:2]), mm[2]))
    logger.warning("%s: its slices are tilted by %.1f degrees; the volume is straightened", path.name, angle)
    start = -np.minimum(stack.lean * (len(stack.order) - 1), 0)
    margin = [(0, 0), *((0, n - m) for n, m in zip(stack.sizes[:2], array.shape[1:3], strict=True))]
    straight = np.empty((len(array), *stack.sizes), np.float32)
    for k in range(len(stack.order)):
        plane = np.pad(array[..., k], margin, constant_values=array.min())
        offset = (0, *(start + k * stack.lean))
        straight[..., k] = ndimage.shift(plane, offset, order=1, mode="grid-constant", cval=float(array.min()))
    return straight
