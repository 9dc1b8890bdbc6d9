"""The axes of a volume: RAS order, slices as radiologists view them, and the way back into the volume."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.formats.scan import Floats, Scan
from monai_diffae.errors import ScanError, counted
from monai_diffae.policies import check_choice

T = TypeVar("T", bound=np.generic)

Axis = Literal["axial", "coronal", "sagittal"]
AXES: dict[Axis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The RAS axis along which each kind of slice is stacked."""

_NUDGE = np.eye(4)
_NUDGE[:3, :3] += 5e-4 * np.array([[0, -3, 2], [3, 0, -1], [-2, 1, 0]])  # a rotation around no axis of symmetry


def slice_volume(scan: Scan, axis: Axis, index: int) -> Scan:
    """Take one slice of a volume as radiologists view it; ``index`` counts from inferior, posterior or left.

    Rows run from anterior (axial) or superior; columns from the patient's right, or for sagittal slices from anterior.
    """
    check_choice("axis", axis, AXES)
    volume = to_ras(scan)  # a view: the volume is not copied for one slice
    affine = volume.affine
    normal = AXES[axis]
    num_slices = volume.array.shape[1 + normal]
    if not 0 <= index < num_slices:
        raise ScanError(f"slice {index} does not exist: the volume has {counted(num_slices, f'{axis} slice')}")
    column, row = (a for a in range(3) if a != normal)
    # rows and columns run against the RAS axes: superior, anterior and right come first
    plane = np.take(volume.array, index, axis=1 + normal)[:, ::-1, ::-1].swapaxes(1, 2)
    slice_affine = np.eye(4)
    slice_affine[:3, :3] = np.stack([-affine[:3, row], -affine[:3, column], affine[:3, normal]], axis=1)
    corner: Floats = np.array([*(n - 1 for n in volume.array.shape[1:]), 1.0])
    corner[normal] = index
    slice_affine[:, 3] = affine @ corner
    return Scan(np.ascontiguousarray(plane), slice_affine, scan.modality, doubts=scan.doubts)


def insert_slices(background: NDArray[T], affine: Floats, axis: Axis, slices: Mapping[int, NDArray[T]]) -> NDArray[T]:
    """Put slices back into a volume: the inverse of :func:`slice_volume`."""
    filled = background.copy()
    volume = _oriented(filled, ras_orientation(affine))  # a view of ``filled``
    along = np.moveaxis(volume, 1 + AXES[axis], 1)  # a view: [C, slices, columns, rows]
    for index, plane in slices.items():
        along[:, index] = plane.swapaxes(1, 2)[:, ::-1, ::-1]
    return filled


def _oriented(array: NDArray[T], orientation: Floats) -> NDArray[T]:
    """A view of a volume ``[C, X, Y, Z]`` with reordered and flipped axes."""
    return np.moveaxis(nib.orientations.apply_orientation(np.moveaxis(array, 0, -1), orientation), -1, 0)


def flat_axis(shape: Sequence[int]) -> Axis | None:
    """The axis along which a volume ``(R, A, S)`` has a single slice, or None."""
    return next((axis for axis in reversed(AXES) if shape[AXES[axis]] == 1), None)


def flattened(scan: Scan) -> Scan:
    """A volume with one slice as a 2D image; any other scan unchanged."""
    axis = flat_axis(ras_shape(scan)) if scan.spatial_dims == 3 else None
    return scan if axis is None else replace(slice_volume(scan, axis, 0), volume=scan)


def in_file_axes(array: NDArray[T], scan: Scan) -> tuple[NDArray[T], Scan]:
    """An image in the space of a scan, and the scan; of a volume with one slice, in the volume's axes."""
    axis = None if scan.volume is None else flat_axis(ras_shape(scan.volume))
    if scan.volume is None or axis is None:
        return array, scan
    background = np.zeros((len(array), *scan.volume.array.shape[1:]), array.dtype)
    return insert_slices(background, scan.volume.affine, axis, {0: array}), scan.volume


def ras_shape(scan: Scan) -> tuple[int, int, int]:
    """The size ``(R, A, S)`` of a volume."""
    r, a, s = (scan.array.shape[1 + axis] for axis in np.argsort(ras_axes(scan.affine)))
    return r, a, s


def slice_shape(shape: Sequence[int], axis: Axis) -> tuple[int, int]:
    """Rows and columns of a slice of a volume ``(R, A, S)``."""
    column, row = (n for i, n in enumerate(shape) if i != AXES[axis])
    return row, column


def ras_orientation(affine: Floats) -> Floats:
    """For each voxel axis, the closest RAS axis and its direction; turned by 0.1 degrees, as rounding decides at 45."""
    orientation: Floats = nib.orientations.io_orientation(_NUDGE @ affine)
    return orientation


def ras_axes(affine: Floats) -> list[int]:
    """For each voxel axis, the RAS axis (0, 1, 2) that is closest to it."""
    return [int(a) for a in ras_orientation(affine)[:, 0]]


def to_ras(scan: Scan) -> Scan:
    """Reorder and flip a volume's axes to the closest RAS order, without resampling; the array is a view."""
    orientation = ras_orientation(scan.affine)
    array = _oriented(scan.array, orientation)
    affine = scan.affine @ nib.orientations.inv_ornt_aff(orientation, scan.array.shape[1:])
    return Scan(array, affine, scan.modality, doubts=scan.doubts)
