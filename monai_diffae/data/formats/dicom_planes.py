"""Where the planes of a DICOM volume lie, and whether they form one evenly spaced stack.

A plane is a file of a series, or a frame of an enhanced multi-frame file. Nothing is guessed: planes without a
position, missing planes, and planes that do not belong together are errors. A sheared stack (from a tilted gantry,
where each plane is shifted against the one before) is straightened. Planes that were planned with several spacings are
resampled to the finest one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from scipy import ndimage

from monai_diffae.data.formats.dicom_pixels import lenient
from monai_diffae.data.formats.itk import LPS_TO_RAS
from monai_diffae.data.formats.scan import Doubt, Floats, Voxels, check_affine, check_budget
from monai_diffae.errors import counted, problem

SHARED, FRAMES = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_PLACE = {  # the tags that say where a plane lies: how many numbers each has, and its functional group
    "ImagePositionPatient": (3, "PlanePositionSequence"),
    "ImageOrientationPatient": (6, "PlaneOrientationSequence"),
    "PixelSpacing": (2, "PixelMeasuresSequence"),
}
_VALUES = ("RescaleSlope", "RescaleIntercept")
_COUNTS = ("NumberOfSlices", "ImagesInAcquisition", "NumberOfSeriesRelatedInstances")
_SAME_DIRECTION = 2e-3  # 0.1 degrees; scanners round to 4 decimals or more
_FLAT_PLACE = [(keyword, group) for keyword, (_, group) in _PLACE.items()][:2]
_FLAT_SPACINGS = [("PixelSpacing", "PixelMeasuresSequence"), ("ImagerPixelSpacing",), ("NominalScannedPixelSpacing",)]
TAGS = (
    *_PLACE,
    *_VALUES,
    "DoseGridScaling",
    *_COUNTS,
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SpacingBetweenSlices",
    "InstanceNumber",
    "NumberOfFrames",
    SHARED,
    FRAMES,
)
_EVEN = 0.1  # tolerance for even spacing, as a fraction of the distance between planes
_WIDE = 1.5  # a gap that is this many times wider than the fine ones
_PLANNED = 3  # wide gaps in a row, at least; fewer are taken for missing slices
_FINE_FRACTION = 0.1  # at least this fraction of the gaps is as narrow as the fine gap
_LEAN = 0.5  # voxels between the first and the last plane: a smaller shift is no tilt


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane, in DICOM's own axes (LPS)."""

    position: Floats  # centre of its first voxel, in mm
    directions: Floats  # 3x2, unit vectors along a row and along a column
    spacing: Floats  # mm between the voxels of a row, and of a column
    rescale: tuple[float, float]  # slope and intercept from stored values to the scan's values
    number: int | None = None  # the InstanceNumber of a file; None for frames
    num_declared: int = 0  # the number of slices that the header of a file declares; 0: none


@dataclass(frozen=True, eq=False)
class Stack:
    """Planes as a volume ``[X, Y, Z]``."""

    order: list[int]  #: indices of the given planes, sorted along the normal
    #: position of each sorted plane along the volume's third axis; whole numbers if they are evenly spaced
    places: Floats
    sizes: tuple[int, int, int]  #: size of the volume, after straightening if it is tilted
    affine: Floats  #: affine of the volume, to mm in RAS+
    #: shift of the volume's planes against the ones before, in voxels along x and y; zeros without a tilt
    lean: Floats
    rescales: list[tuple[float, float]]  #: slope and intercept of each given plane
    doubts: tuple[Doubt, ...] = ()  #: whether planes are unevenly spaced, tilted or perhaps missing

    @property
    def is_even(self) -> bool:
        """Whether the given planes are already those of the volume, so that none is interpolated."""
        return len(self.order) == self.sizes[2] and not (self.places % 1).any()

    def nearest_planes(self) -> list[int]:
        """The index of the nearest given plane, for each plane of the volume."""
        distances = np.abs(np.arange(self.sizes[2])[:, None] - self.places)
        return [self.order[k] for k in np.argmin(distances, axis=1)]


def read_planes(path: Path, header: Dataset) -> list[Plane]:
    """The planes of a file: one, or one per frame."""
    with lenient():
        if int(header.get("NumberOfFrames") or 1) > 1 and not header.get(FRAMES):
            wrong = "its frames have no positions (it is a film, or of an old kind)"
            raise problem(path, wrong, "save them as slices, or as NIfTI")
        planes = [_plane(path, groups) for groups in _frames(header)]
        if header.get(FRAMES):
            return planes
        declared = max(_whole(header, keyword) or 0 for keyword in _COUNTS)
        return [replace(planes[0], number=_whole(header, "InstanceNumber"), num_declared=declared)]


def read_rescale(groups: Sequence[Dataset]) -> tuple[float, float]:
    """Slope and intercept from stored values to the scan's values, of a frame's groups."""
    slope, intercept = (_numbers(groups, keyword, "PixelValueTransformationSequence") for keyword in _VALUES)
    slope = slope or _numbers(groups, "DoseGridScaling")
    return (slope[0] if slope else 0.0) or 1.0, intercept[0] if intercept else 0.0


def flat_geometry(header: Dataset) -> tuple[Floats, tuple[float, float]]:
    """The affine of one image, from (row, column, 0) to mm, and its rescale; without tags, a plain grid of 1 mm."""
    with lenient():
        (groups, *_) = _frames(header)
        position, axes, *spacings = (_numbers(groups, *tag) for tag in [*_FLAT_PLACE, *_FLAT_SPACINGS])
        gap = _numbers(groups, "SpacingBetweenSlices") or [1.0]
        rescale = read_rescale(groups)
    spacing = next((s for s in spacings if len(s) == 2 and 0 < min(s) <= max(s) < math.inf), [1.0, 1.0])
    directions = np.reshape(axes if len(axes) == 6 else (1, 0, 0, 0, 1, 0), (2, 3))
    across, down = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([down * spacing[0], across * spacing[1], np.cross(across, down) * (gap[0] or 1.0)])
    affine[:3, 3] = position if len(position) == 3 else 0
    return LPS_TO_RAS @ affine, rescale


def _frames(header: Dataset) -> list[list[Dataset]]:
    """For each frame, the data sets that describe it: the first one that has a tag counts."""
    shared, frames = header.get(SHARED) or [], header.get(FRAMES) or []
    return [[frame, *shared] for frame in frames] or [[header]]


def _plane(path: Path, groups: list[Dataset]) -> Plane:
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
    return Plane(
        place["ImagePositionPatient"],
        directions / np.linalg.norm(directions, axis=0),
        place["PixelSpacing"][::-1],
        read_rescale(groups),
    )


def _numbers(groups: Sequence[Dataset], keyword: str, group: str | None = None) -> list[float]:
    for dataset in groups:
        inner = (dataset.get(group) if group else None) or [dataset]
        try:
            return [float(v) for v in np.atleast_1d(inner[0][keyword].value)]
        except (KeyError, TypeError, ValueError):
            continue
    return []


def _whole(dataset: Dataset, keyword: str) -> int | None:
    try:
        return int(dataset[keyword].value)
    except (KeyError, TypeError, ValueError):
        return None


def make_stack(path: Path, planes: list[Plane], columns: int, rows: int) -> Stack:
    """Sort two or more planes of ``rows`` x ``columns`` voxels into a volume, whose X runs along the rows."""
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
    deviations = points - points[0] - places[:, None] * step
    shift = float(np.linalg.norm(deviations - (deviations @ normal)[:, None] * normal, axis=1).max())  # within planes
    if shift > _LEAN * float(first.spacing.min()):
        raise problem(path, f"its slices are shifted against each other (by {shift:.3g} mm)", "align them first")
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
    stack = Stack(order, places, (sizes[0], sizes[1], sizes[2]), affine, lean, [plane.rescale for plane in planes])
    if not stack.is_even:
        gaps, todo = np.diff(heights), "accept that (uneven: resample), or omit it"
        wrong = f"its slices are unevenly spaced ({gaps.min():.3g} to {gaps.max():.3g} mm)"
        doubts.insert(0, Doubt("uneven", wrong, f"they are resampled to {float(step @ normal):.3g} mm", todo))
    return replace(stack, doubts=tuple(doubts))


def _tilt_doubt(step: Floats, normal: Floats) -> Doubt:
    height = step @ normal
    angle = math.degrees(math.atan2(float(np.linalg.norm(step - height * normal)), height))
    wrong = f"each slice is shifted against the one before, as by a gantry tilt of {angle:.1f} degrees"
    return Doubt("tilted", wrong, "the volume is straightened", "accept that (doubtful: warn), or omit it")


def to_volume(array: Voxels, stack: Stack) -> Voxels:
    """Make the volume ``[C, *stack.sizes]`` from planes ``[C, X, Y, N]`` in the stack's order."""
    array = _straighten(array, stack)
    if stack.is_even:
        return array
    below = np.searchsorted(stack.places, np.arange(stack.sizes[2]), side="right") - 1
    below = np.minimum(below, len(stack.places) - 2)
    low, high = stack.places[below], stack.places[below + 1]
    weight = ((np.arange(stack.sizes[2]) - low) / (high - low)).astype(np.float32)
    volume: Voxels = array[..., below] * (1 - weight) + array[..., below + 1] * weight
    return volume


def _straighten(array: Voxels, stack: Stack) -> Voxels:
    """Shift each plane of a tilted stack to its position; where there is no plane, the volume has the lowest value."""
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


# -- evenly spaced, planned with several spacings, or incomplete -------------------------------------------------------


def place_planes(path: Path, heights: Floats, numbers: Sequence[int | None]) -> Floats:
    """Positions of planes with ascending heights, in units of the evenly spaced planes of the volume."""
    gaps = np.diff(heights)
    if gaps.min() < max(0.01 * float(np.median(gaps)), 1e-3):
        wrong = "two of its slices have the same position (duplicates, or 4D)"
        raise problem(path, wrong, "keep one file per position")
    # the finest gap, apart from a few exceptions that are narrower
    num_exceptions = 0 if len(gaps) <= _PLANNED else max(1, int(_FINE_FRACTION * len(gaps)))
    fine = float(np.sort(gaps)[num_exceptions])
    _check_missing(path, gaps, fine, numbers)
    even = np.linspace(heights[0], heights[-1], len(heights))
    if np.abs(heights - even).max() <= _EVEN * float(np.median(gaps)):
        return np.arange(len(heights), dtype=np.float64)
    extent = heights - heights[0]
    places: Floats = extent / extent[-1] * round(extent[-1] / fine)
    return places


def incomplete_doubts(numbers: Sequence[int | None], declared: int) -> Iterator[Doubt]:
    """Yield a doubt if a series has fewer slices than its header declares (0: none), or than its highest number."""
    highest = max((number for number in numbers if number is not None), default=0)
    for count, source in ((declared, "its header declares"), (highest, "their numbers reach")):
        if count > len(numbers):
            wrong = f"it has {counted(len(numbers), 'slice')}, but {source} {count}"
            yield Doubt("incomplete", wrong, "slices may be missing", "copy the whole series again")
            return


def _check_missing(path: Path, gaps: Floats, fine: float, numbers: Sequence[int | None]) -> None:
    """Raise an error if wide gaps are too few to be planned, or if numbers are missing there."""
    is_wide = gaps > _WIDE * fine
    runs = [len([*run]) for wide, run in groupby(is_wide) if wide]
    known = [number for number in numbers if number is not None]
    steps = np.abs(np.diff(known)) if len(known) == len(numbers) else np.ones(len(gaps))
    # too few in a row, or the numbers differ by more across a wide gap than across the others
    if runs and (min(runs) < _PLANNED or steps[is_wide].max() > np.median(steps[~is_wide])):
        gap = f"{gaps.max():.3g} mm, but others are {fine:.3g} mm"
        raise problem(path, f"a slice is missing (a gap of {gap})", "copy the whole series again")
