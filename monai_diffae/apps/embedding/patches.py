"""Scans larger than a model's field as patches of its size, and where these lie."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowSplitter
from monai.transforms import Compose, CopyItemsd, EnsureTyped, ResizeWithPadOrCropd, SpatialPad
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.bundle.loading import TrainedBundle
from monai_diffae.data.streamed import Arrays
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms import ReadScand

_TO_PLACES = "to_places"
_MM = ("x_mm", "y_mm", "z_mm")
_PIXELS = ("row_px", "column_px")
_BACKGROUND = 0.01  # of the model's range above its lowest value: resampling does not keep that to the bit
_COPIES = (CopyItemsd, EnsureTyped)


class PatchCutter:
    """Cuts scans into patches of the model's field, on a grid, instead of cropping them to it.

    A scan goes through the bundle's preprocessing without the step that crops or pads it to the field. It is padded
    on all sides alike, with the model's lowest value, until the grid covers it: a scan no larger than the field makes
    one patch, the image that the whole preprocessing makes.

    Args:
        trained: the bundle.
        key: the image that the encoder sees.
        overlap: the share of a patch, along each axis, that it has in common with the next, 0 to less than 1; more
            where that is no whole number of voxels, and less where it would leave no step.

    Attributes:
        keys: what is to be kept of what :meth:`__call__` makes.
        place_names: what the numbers of a place are.

    Raises:
        ConfigError: the overlap makes no sense, or the preprocessing does not end with ``ResizeWithPadOrCropd``.
    """

    def __init__(self, trained: TrainedBundle, key: str, overlap: float) -> None:
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap: {overlap:g} is not from 0 to below 1; it is a share of a patch, such as 0.25")
        self._preprocessing = _without_crop(trained.preprocessing, key)
        self._key, self._low = key, trained.model_range[0]
        self._background = self._low + _BACKGROUND * (trained.model_range[1] - self._low)
        self._size = trained.image_shape[1:]
        self._steps = [max(1, int(side * (1 - overlap) + 1e-6)) for side in self._size]
        self.keys = (key, _TO_PLACES)
        self.place_names = ("patch", "of", *(_PIXELS if len(self._size) == 2 else ()), *_MM)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """A case's scan, preprocessed and padded, and the affine (K, 4) from its indices to places."""
        image = self._preprocessing(dict(item))[self._key]
        covered = [
            side + step * max(0, -(-(there - side) // step))
            for there, side, step in zip(image.shape[1:], self._size, self._steps, strict=True)
        ]
        padded: MetaTensor = SpatialPad(covered, mode="constant", value=self._low)(image)  # type: ignore[assignment]
        return {self._key: padded, _TO_PLACES: torch.from_numpy(_to_places(padded))}

    def cut(self, scan: Arrays) -> Iterator[tuple[NDArray[np.float32], Tensor]]:
        """The place (as ``place_names`` says) and image ``[C, *S]`` of each patch with more in it than background.

        Patches are numbered as they lie on the grid, whatever they hold; the centres are given.

        Raises:
            ScanError: there is no such patch.
        """
        image = torch.from_numpy(scan[self._key])
        overlaps = [side - step for side, step in zip(self._size, self._steps, strict=True)]
        # MONAI's own padding leaves scans that are much smaller than a patch too small, and pads one side only
        splitter = SlidingWindowSplitter(self._size, overlaps, pad_mode=None)
        windows = list(splitter(image[None]))
        is_empty = True
        for number, (window, corner) in enumerate(windows):
            if window.max() > self._background:
                is_empty = False
                centre = [c + (side - 1) / 2 for c, side in zip(corner, self._size, strict=True)]
                at = scan[_TO_PLACES].astype(np.float64) @ [*centre, *[0.0] * (3 - len(centre)), 1.0]
                yield np.array([number, len(windows), *at], np.float32), window[0]
        if is_empty:
            raise ScanError(
                f"{self._key}: no patch holds more than background; check intensity, window_hu, percentiles"
            )


def _without_crop(preprocessing: Any, key: str) -> Compose:
    """A bundle's preprocessing without its last step, but with what only copies after it."""
    steps = list(Compose(preprocessing).flatten().transforms)
    last = max((i for i, step in enumerate(steps) if not isinstance(step, _COPIES)), default=0)
    copied = {name for step in steps[last + 1 :] if isinstance(step, CopyItemsd) for name in step.names}
    is_cropped = isinstance(steps[last], ResizeWithPadOrCropd) and key in {*steps[last].keys, *copied}
    if not (is_cropped and isinstance(steps[0], ReadScand)):
        raise ConfigError(
            f"patches: the bundle's preprocessing of {key!r} does not begin with ReadScand and end with "
            "ResizeWithPadOrCropd, in whose place scans are cut; embed them whole"
        )
    rest = copy.copy(preprocessing) if isinstance(preprocessing, Compose) else Compose()
    rest.transforms = (*steps[:last], *steps[last + 1 :])
    return rest


def _to_places(image: MetaTensor) -> NDArray[np.float64]:
    """The affine (K, 4) from an image's indices to RAS+ mm; of a 2D one to the pixels of its file before that."""
    affine: NDArray[np.float64] = image.affine.numpy().astype(np.float64)
    if image.ndim == 4:
        return affine[:3]
    of_scan: NDArray[np.float64] = np.asarray(image.meta["scan_affine"], np.float64)
    read_with = np.diag([*np.linalg.norm(of_scan[:3, :2], axis=0), 1.0, 1.0])  # see ReadScand
    to_pixels = np.linalg.inv(read_with) @ affine
    is_picture = np.array_equal(of_scan, np.eye(4))  # and lies nowhere
    return np.concatenate([to_pixels[:2], np.full((3, 4), np.nan) if is_picture else (of_scan @ to_pixels)[:3]])
