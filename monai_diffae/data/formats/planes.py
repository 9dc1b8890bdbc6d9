"""Where the planes of a DICOM volume lie, and whether they form one evenly spaced stack.

A plane is a file of a series, or a frame of an enhanced multi-frame file. Nothing is guessed: planes without a
position, missing planes, and planes that do not belong together are errors. A sheared stack (from a tilted gantry,
where each plane is shifted against the one before) is straightened. Planes that were planned with several spacings are
resampled to the finest one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from scipy import ndimage

from monai_diffae.data.formats.itk import LPS_TO_RAS
from monai_diffae.data.formats.plane_gaps import incomplete_doubts, place_planes, uneven_doubt
from monai_diffae.data.formats.scan import Doubt, check_affine, check_budget, problem

FloatArray = NDArray[np.float64]

_SHARED, _FRAMES = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_PLACE = {  # the tags that say where a plane lies: how many numbers each has, and its functional group
    "ImagePositionPatient": (3, "PlanePositionSequence"),
    "ImageOrientationPatient": (6, "PlaneOrientationSequence"),
    "PixelSpacing": (2, "PixelMeasuresSequence"),
}
_VALUES = ("RescaleSlope", "RescaleIntercept")
_COUNTS = ("NumberOfSlices", "ImagesInAcquisition", "NumberOfSeriesRelatedInstances")
_SAME_DIRECTION = 2e-3  # 0.1 degrees; scanners round to 4 decimals or more
_TAGS = [*_PLACE, *_COUNTS, "InstanceNumber", "NumberOfFrames", _SHARED, _FRAMES]
_LEAN = 0.5  # voxels between the first and the last plane: a smaller shift is no tilt


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane, in DICOM's own axes (LPS).

    Attributes:
        position: centre of its first voxel, in mm.
        directions: 3x2, unit vectors along a row and along a column.
        spacing: mm between the voxels of a row, and of a column.
        rescale: slope and intercept from stored values to the scan's values, for frames; otherwise 1 and 0.
        number: the InstanceNumber of a file; None for frames.
        num_declared: the number of slices that the header of a file declares; 0: none.
    """

    position: FloatArray
    directions: FloatArray
    spacing: FloatArray
    rescale: tuple[float, float]
    number: int | None = None
    num_declared: int = 0


@dataclass(frozen=True, eq=False)
class Stack:
    """Planes as a volume ``[X, Y, Z]``.

    Attributes:
        order: indices of the given planes, sorted along the normal.
        places: position of each sorted plane along the volume's third axis; whole numbers if they are evenly spaced.
        sizes: size of the volume, after straightening if it is tilted.
        affine: affine of the volume, to mm in RAS+.
        lean: shift of the volume's planes against the ones before, in voxels along x and y; zeros without a tilt.
        doubts: whether planes are unevenly spaced, tilted or perhaps missing.
    """

    order: list[int]
    places: FloatArray
    sizes: tuple[int, int, int]
    affine: FloatArray
    lean: FloatArray
    doubts: tuple[Doubt, ...] = ()

    @property
    def is_even(self) -> bool:
        """Whether the given planes are already those of the volume, so that none is interpolated."""
        return len(self.order) == self.sizes[2] and not (self.places % 1).any()

    def nearest_planes(self) -> list[int]:
        """The index of the nearest given plane, for each plane of the volume."""
        distances = np.abs(np.arange(self.sizes[2])[:, None] - self.places)
        return [self.order[k] for k in np.argmin(distances, axis=1)]


def read_planes(path: Path, copy: Path | None = None) -> list[Plane]:
    """Read the planes of a file, or of a ``copy`` of it: one, or one per frame.

    Raises:
        ScanError: the tags do not say where a plane lies.
    """
    with disable_value_validation():
        dataset = pydicom.dcmread(copy or path, stop_before_pixels=True, force=True, specific_tags=_TAGS)
        if int(dataset.get("NumberOfFrames") or 1) == 1 and _FRAMES not in dataset:
            return [
                replace(
                    _plane(path, [dataset]),
                    number=_whole(dataset, "InstanceNumber"),
                    num_declared=max(_whole(dataset, keyword) or 0 for keyword in _COUNTS),
                )
            ]
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


def _whole(dataset: pydicom.Dataset, keyword: str) -> int | None:
    try:
        return int(dataset[keyword].value)
    except (KeyError, TypeError, ValueError):
        return None


def make_stack(path: Path, planes: list[Plane], columns: int, rows: int) -> Stack:
    """Sort planes of ``rows`` x ``columns`` voxels into a volume.

    Args:
        path: the scan, for messages.
        planes: two or more, in any order.
        columns: voxels in a row of a plane, the volume's X.
        rows: voxels in a column of a plane, the volume's Y.

    Raises:
        ScanError: planes are missing or duplicated, or differ in orientation or spacing.
    """
    first = planes[0]
    if any(np.abs(p.directions - first.directions).max() > _SAME_DIRECTION for p in planes):
        raise problem(path, "its slices have different orientations", "split localisers from the volume")
    if any(not np.allclose(p.spacing, first.spacing, rtol=1e-3) for p in planes):
        raise problem(path, "its slices have different PixelSpacings", "keep the files of one volume only")
    normal = np.cross(*first.directions.T)
    order = sorted(range(len(planes)), key=lambda k: float(planes[k].position @ normal))
    points = np.array([planes[k].position for k in order])
    heights, numbers = points @ normal, [planes[k].number for k in order]
    places = place_planes(path, heights, numbers)
    num_steps = round(places[-1])
    step = (points[-1] - points[0]) / num_steps
    _check_line(path, points, points[0] + places[:, None] * step, normal, float(first.spacing.min()))
    affine = np.eye(4)
    affine[:3, :2], affine[:3, 2], affine[:3, 3] = first.directions * first.spacing, step, points[0]
    lean = first.directions.T @ step / first.spacing
    sizes = [columns, rows, num_steps + 1]
    total = lean * num_steps
    doubts = [*incomplete_doubts(numbers, min(plane.num_declared for plane in planes))]
    if np.abs(total).max() > _LEAN:
        doubts.append(_tilt_doubt(step, normal))
        affine[:3, 2] = (step @ normal) * normal
        affine[:, 3] = affine @ [*np.minimum(total, 0), 0, 1]
        sizes[:2] = [n + math.ceil(abs(t) - 1e-3) for n, t in zip(sizes[:2], total, strict=True)]
    else:
        lean = np.zeros(2)
    affine = LPS_TO_RAS @ affine
    check_affine(path, affine)
    check_budget(path, sizes)
    stack = Stack(order, places, (sizes[0], sizes[1], sizes[2]), affine, lean)
    if not stack.is_even:
        doubts.insert(0, uneven_doubt(np.diff(heights), float(step @ normal)))
    return replace(stack, doubts=tuple(doubts))


def _check_line(path: Path, points: FloatArray, line: FloatArray, normal: FloatArray, voxel_mm: float) -> None:
    """Check that the planes' positions ``points`` are not shifted within the planes against those on a ``line``."""
    deviation = points - line
    within = deviation - (deviation @ normal)[:, None] * normal
    shift = float(np.linalg.norm(within, axis=1).max())
    if shift > _LEAN * voxel_mm:
        raise problem(path, f"its slices are shifted against each other (by {shift:.3g} mm)", "align them first")


def _tilt_doubt(step: FloatArray, normal: FloatArray) -> Doubt:
    height = step @ normal
    angle = math.degrees(math.atan2(float(np.linalg.norm(step - height * normal)), height))
    wrong = f"each slice is shifted against the one before, as by a gantry tilt of {angle:.1f} degrees"
    return Doubt("tilted", wrong, "the volume is straightened", "accept that (doubtful: warn), or omit it")


def to_volume(array: NDArray[np.float32], stack: Stack) -> NDArray[np.float32]:
    """Make the volume ``[C, *stack.sizes]`` from planes ``[C, X, Y, N]`` in the stack's order."""
    return _resample(_straighten(array, stack), stack)


def _straighten(array: NDArray[np.float32], stack: Stack) -> NDArray[np.float32]:
    """Shift each plane of a tilted stack to its position, by linear interpolation within the plane.

    Where there is no plane, the volume has the array's smallest value.
    """
    if not stack.lean.any():
        return array
    start = -np.minimum(stack.lean * (stack.sizes[2] - 1), 0)
    margin = [(0, 0), *((0, n - m) for n, m in zip(stack.sizes[:2], array.shape[1:3], strict=True))]
    straight = np.empty((len(array), *stack.sizes[:2], array.shape[3]), np.float32)
    for k, place in enumerate(stack.places):
        plane = np.pad(array[..., k], margin, constant_values=array.min())
        offset = (0, *(start + place * stack.lean))
        straight[..., k] = ndimage.shift(plane, offset, order=1, mode="grid-constant", cval=float(array.min()))
    return straight


def _resample(array: NDArray[np.float32], stack: Stack) -> NDArray[np.float32]:
    """Interpolate linearly between unevenly spaced planes."""
    if stack.is_even:
        return array
    below = np.searchsorted(stack.places, np.arange(stack.sizes[2]), side="right") - 1
    below = np.minimum(below, len(stack.places) - 2)
    low, high = stack.places[below], stack.places[below + 1]
    weight = ((np.arange(stack.sizes[2]) - low) / (high - low)).astype(np.float32)
    volume: NDArray[np.float32] = array[..., below] * (1 - weight) + array[..., below + 1] * weight
    return volume
