"""Slices of volumes, laid out for display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.formats.scan import Scan
from monai_diffae.errors import ConfigError, ScanError

Axis = Literal["axial", "coronal", "sagittal"]
AXES: dict[Axis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The RAS axis that each kind of slice is stacked along."""


def slice_volume(scan: Scan, axis: Axis, index: int) -> Scan:
    """One slice of a volume, laid out as a radiologist sees it, whatever the order of the file's voxels.

    The volume is first brought to the closest RAS order, and ``index`` counts in it: from inferior for axial, from
    posterior for coronal, from left for sagittal slices. On the slice

    ========  =====================  ======================
    axis      rows, top to bottom    columns, left to right
    ========  =====================  ======================
    axial     anterior to posterior  right to left (patient)
    coronal   superior to inferior   right to left (patient)
    sagittal  superior to inferior   anterior to posterior
    ========  =====================  ======================

    Args:
        scan: a volume ``[C, X, Y, Z]``.
        axis: the direction that the slices are stacked in.
        index: 0 to the number of slices less 1.

    Returns:
        ``[C, H, W]``, with the affine from (row, column, 0) to mm.

    Example:
        >>> volume = Scan(np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), np.eye(4))
        >>> slice_volume(volume, "axial", 0).array[0]
        array([[20.,  8.],
               [16.,  4.],
               [12.,  0.]], dtype=float32)
    """
    if axis not in AXES:
        raise ConfigError(f"axis: '{axis}' is not one of {', '.join(AXES)}")
    if scan.spatial_dims != 3:
        raise ScanError("a 2D image has no slices")
    volume = to_ras(scan)
    affine = volume.affine
    across = AXES[axis]
    if not 0 <= index < volume.array.shape[1 + across]:
        raise ScanError(f"slice {index} does not exist: the volume has {volume.array.shape[1 + across]} {axis} slices")
    column, row = (a for a in range(3) if a != across)
    # rows and columns run against R, A and S alike: superior, anterior and right come first
    plane = np.take(volume.array, index, axis=1 + across)[:, ::-1, ::-1].swapaxes(1, 2)
    placed = np.eye(4)
    placed[:3, 0], placed[:3, 1], placed[:3, 2] = -affine[:3, row], -affine[:3, column], affine[:3, across]
    corner: NDArray[np.float64] = np.array([*(n - 1 for n in volume.array.shape[1:]), 1.0])
    corner[across] = index
    placed[:, 3] = affine @ corner
    return Scan(np.ascontiguousarray(plane), placed, scan.modality)


def flat_axis(shape: Sequence[int]) -> Axis | None:
    """The axis along which a volume ``(R, A, S)`` has a single slice; None where it has none.

    Example:
        >>> flat_axis((40, 1, 50)), flat_axis((40, 30, 50))
        ('coronal', None)
    """
    return next((axis for axis in reversed(AXES) if shape[AXES[axis]] == 1), None)


def slice_shape(shape: Sequence[int], axis: Axis) -> tuple[int, int]:
    """Rows and columns of a slice of a volume ``(R, A, S)``.

    Example:
        >>> slice_shape((40, 30, 50), "sagittal")
        (50, 30)
    """
    column, row = (n for i, n in enumerate(shape) if i != AXES[axis])
    return row, column


def ras_axes(affine: NDArray[np.float64]) -> list[int]:
    """For each voxel axis, the RAS axis (0, 1, 2) that it runs along most closely."""
    return [int(a) for a in nib.orientations.io_orientation(affine)[:, 0]]


def to_ras(scan: Scan) -> Scan:
    """A volume with its axes exchanged and reversed to the closest RAS order; nothing is resampled."""
    turn = nib.orientations.io_orientation(scan.affine)
    array = np.stack([nib.orientations.apply_orientation(channel, turn) for channel in scan.array])
    return Scan(array, scan.affine @ nib.orientations.inv_ornt_aff(turn, scan.array.shape[1:]), scan.modality)
