"""Fingerprints of scans, by which identical and nearly identical scans are found."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, uniform_filter

from monai_diffae.data.formats.scan import Scan
from monai_diffae.data.slices import to_ras

SIZE = 32  # rows and columns of a thumbnail
_WINDOW = 9  # pixels of a thumbnail over which its coarse content is averaged
_FLAT = 1e-6  # least standard deviation of the details, in units of the thumbnail's range
_STEPS, _LEAST_GAIN = 8, 0.002  # of the alignment

Thumbnail = NDArray[np.float32]
"""``[P, 32, 32]`` in 0..1: a picture, or the middle planes of a volume across each of its axes."""

_AXIS = np.arange(SIZE, dtype=np.float64)
_CENTRED = np.stack(np.meshgrid(_AXIS, _AXIS, indexing="ij")) - _AXIS.mean()


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What is kept of a scan to compare it with others.

    Attributes:
        digest: SHA-256 of the voxels and the size.
        thumbnail: a small version; None if it shows nothing, such as an empty slice.
    """

    digest: bytes
    thumbnail: Thumbnail | None


def fingerprint(array: NDArray[np.float32]) -> Fingerprint:
    """The fingerprint of an image ``[C, H, W]`` or a volume ``[C, X, Y, Z]``.

    Example:
        >>> image = np.random.default_rng(0).random((1, 50, 40), np.float32)
        >>> fingerprint(image).digest == fingerprint(image.copy()).digest, fingerprint(image).thumbnail.shape
        (True, (1, 32, 32))
    """
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return Fingerprint(digest.digest(), _thumbnail(array))


def scan_fingerprint(scan: Scan) -> Fingerprint:
    """The fingerprint of a scan, whatever the order of a volume's voxels in its file."""
    return fingerprint(scan.array if scan.spatial_dims == 2 else to_ras(scan).array)


def details(thumbnail: Thumbnail) -> NDArray[np.float64]:
    """The fine content ``[P * 32 * 32]`` of a thumbnail, with norm 1: scans of one kind have the coarse one in common.

    Example:
        >>> image = np.random.default_rng(0).random((1, 32, 32))
        >>> bool(np.isclose(details(image) @ details(0.5 * image + 0.2), 1))
        True
    """
    fine = np.stack([plane - uniform_filter(plane, _WINDOW) for plane in thumbnail.astype(np.float64)])
    fine -= fine.mean()
    return (fine / max(float(np.linalg.norm(fine)), np.finfo(float).tiny)).ravel()


def aligned_correlation(first: Thumbnail, second: Thumbnail) -> float:
    """The correlation of two thumbnails' details after a small shift and stretch of one of them, as after a crop.

    The shift and stretch are found by Gauss-Newton steps, for each plane of a volume separately.

    Example:
        >>> image = uniform_filter(np.random.default_rng(0).random((40, 40)), 5)
        >>> shifted = image[None, 1:33, 1:33], image[None, :32, :32]
        >>> bool(details(shifted[0]) @ details(shifted[1]) < 0.8 < 0.95 < aligned_correlation(*shifted))
        True
    """
    pairs = list(zip(first, second, strict=True))
    return float(np.mean([max(_aligned(a, b), _aligned(b, a)) for a, b in pairs]))


def _aligned(moving: NDArray[np.float32], fixed: NDArray[np.float32]) -> float:
    target = details(fixed[None])
    moved, movement, best = moving, np.zeros((2, 2)), -1.0  # movement: shift and stretch of rows and columns
    for _ in range(_STEPS):
        fine = details(moved[None])
        correlation = float(fine @ target)
        if correlation < best + _LEAST_GAIN:
            return max(best, correlation)
        best = correlation
        gradients = np.stack(np.gradient(fine.reshape(SIZE, SIZE)))
        columns = np.concatenate([fine[None], gradients.reshape(2, -1), (_CENTRED * gradients).reshape(2, -1)])
        amplitude, *steps = np.linalg.lstsq(columns.T, target, rcond=None)[0]
        if amplitude <= 0:
            break
        movement += np.reshape(steps, (2, 2)) / amplitude
        shift, stretch = movement[..., None, None]
        moved = map_coordinates(moving, _CENTRED * (1 + stretch) + shift + _AXIS.mean(), order=1, mode="nearest")
    return best


def _thumbnail(array: NDArray[np.float32]) -> Thumbnail | None:
    sizes = array.shape[1:]
    if len(sizes) == 2:
        planes = [array]
    else:
        planes = [np.take(array, size // 2, axis=1 + axis) for axis, size in enumerate(sizes)]
    small = np.stack([_small(plane) for plane in planes])
    low, high = float(small.min()), float(small.max())
    if not high > low:
        return None
    small = (small - low) / (high - low)
    return small if np.std(small) > _FLAT else None


def _small(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of the channels of ``[C, H, W]``, averaged over 32 x 32 cells."""
    tensor = torch.from_numpy(np.ascontiguousarray(plane))[None]
    resized: NDArray[np.float32] = torch.nn.functional.adaptive_avg_pool2d(tensor, SIZE)[0].mean(dim=0).numpy()
    return resized
