"""Cut scans that are larger than a model's field of view into patches, with their positions in the scan."""

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

from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.data.streamed import Arrays
from monai_diffae.errors import ConfigError, ScanError, quoted
from monai_diffae.transforms import ReadScand

_TO_PLACES = "to_places"
_MM = ("x_mm", "y_mm", "z_mm")
_PIXELS = ("row_px", "column_px")
_BACKGROUND = 0.01  # range of background values, as a fraction of the model's range: resampling changes them a little
_COPIES = (CopyItemsd, EnsureTyped)


class PatchCutter:
    """Cuts scans into patches of the model's field of view, on a grid, instead of cropping the scans to it.

    The preprocessing is applied without its last step, the crop; the scan is then padded symmetrically with the model's
    lowest value until the grid covers it. ``overlap`` is a fraction of the patches' size, 0 to less than 1.
    """

    def __init__(self, trained: TrainedBundle, key: str, overlap: float) -> None:
        self._preprocessing = _without_crop(trained.preprocessing, key)
        self._key, self._low = key, trained.model_range[0]
        self._background = self._low + _BACKGROUND * (trained.model_range[1] - self._low)
        self._size = trained.image_shape[1:]
        self._steps = [max(1, int(side * (1 - overlap) + 1e-6)) for side in self._size]
        self.keys = (key, _TO_PLACES)
        self.place_names = ("patch", "of", *(_PIXELS if len(self._size) == 2 else ()), *_MM)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Preprocess and pad a case's scan, and compute the affine (K, 4) from its indices to positions."""
        image = self._preprocessing(dict(item))[self._key]
        padded_size = [
            side + step * max(0, -(-(length - side) // step))
            for length, side, step in zip(image.shape[1:], self._size, self._steps, strict=True)
        ]
        padded: MetaTensor = SpatialPad(padded_size, mode="constant", value=self._low)(image)  # type: ignore[assignment]
        return {self._key: padded, _TO_PLACES: torch.from_numpy(_to_places(padded))}

    def cut(self, scan: Arrays) -> Iterator[tuple[NDArray[np.float32], Tensor]]:
        """Yield position and image ``[C, *S]`` of each patch that is not entirely background."""
        image = torch.from_numpy(scan[self._key])
        overlaps = [side - step for side, step in zip(self._size, self._steps, strict=True)]
        # MONAI's own padding pads one side only, and leaves scans that are much smaller than a patch too small
        splitter = SlidingWindowSplitter(self._size, overlaps, pad_mode=None)
        windows = list(splitter(image[None]))
        is_background = True
        for number, (window, corner) in enumerate(windows):
            if window.max() > self._background:
                is_background = False
                centre = [start + (side - 1) / 2 for start, side in zip(corner, self._size, strict=True)]
                coordinates = scan[_TO_PLACES].astype(np.float64) @ [*centre, *[0.0] * (3 - len(centre)), 1.0]
                yield np.array([number, len(windows), *coordinates], np.float32), window[0]
        if is_background:
            raise ScanError(f"{self._key}: all patches are background; check intensity, window_hu, percentiles")


def _without_crop(preprocessing: Any, key: str) -> Compose:
    """The bundle's preprocessing without its last step; later steps that only copy are kept."""
    steps = list(Compose(preprocessing).flatten().transforms)
    last = max((i for i, step in enumerate(steps) if not isinstance(step, _COPIES)), default=0)
    copied = {name for step in steps[last + 1 :] if isinstance(step, CopyItemsd) for name in step.names}
    is_cropped = isinstance(steps[last], ResizeWithPadOrCropd) and key in {*steps[last].keys, *copied}
    if not (is_cropped and isinstance(steps[0], ReadScand)):
        raise ConfigError(
            f"patches: the bundle's preprocessing of {quoted(key)} must begin with ReadScand and end with "
            "ResizeWithPadOrCropd, which patches replace; omit patches"
        )
    rest = copy.copy(preprocessing) if isinstance(preprocessing, Compose) else Compose()
    rest.transforms = (*steps[:last], *steps[last + 1 :])
    return rest


def _to_places(image: MetaTensor) -> NDArray[np.float64]:
    """The affine (K, 4) from an image's indices to mm (RAS+); for a 2D image, first two rows to pixels of its file."""
    affine: NDArray[np.float64] = image.affine.numpy().astype(np.float64)
    if image.ndim == 4:
        return affine[:3]
    scan_affine: NDArray[np.float64] = np.asarray(image.meta["scan_affine"], np.float64)
    grid_affine = np.diag([*np.linalg.norm(scan_affine[:3, :2], axis=0), 1.0, 1.0])  # as ReadScand sets it
    to_pixels = np.linalg.inv(grid_affine) @ affine
    is_picture = np.array_equal(scan_affine, np.eye(4))  # a picture has no world coordinates
    return np.concatenate([to_pixels[:2], np.full((3, 4), np.nan) if is_picture else (scan_affine @ to_pixels)[:3]])
