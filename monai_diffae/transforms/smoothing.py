"""Smooth a volume before it is resampled to larger voxels."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy.ndimage import gaussian_filter

from monai_diffae.data.formats.scan import MAX_BYTES
from monai_diffae.errors import ConfigError, ScanError

_FEWEST_VOXELS = 2  # along an axis, at the new spacing
_TRUNCATE = 4.0001  # standard deviations; with 4, rounding would decide about the last voxel at 2.75 mm for 1 mm


class SmoothForSpacingd(MapTransform):
    """Smooths each image along the axes that `ToSpacingd` will make coarser, to prevent aliasing.

    The standard deviation of the Gaussian is ``(factor - 1) / 2`` voxels, where ``factor`` is the new spacing divided
    by the image's own. MONAI's ``Resized(anti_aliasing=True)`` does the same; its ``Spacingd`` (1.6.1) has no such
    option. Axes with finer or equal new spacing are not smoothed. The transform has no inverse and needs none, because
    it changes neither sizes nor positions.

    Args:
        keys: images ``[C, *S]`` as MetaTensor, whose affine has their spacing.
        pixdim: the spacing that `ToSpacingd` gets, in mm.
        allow_missing_keys: skip keys that an item does not have.

    Raises:
        ConfigError: ``pixdim`` is not one positive number per axis.
        ScanError: (on call) an image would have less than 2 voxels along an axis, or need more than 2 GiB.

    Example:
        >>> image = MetaTensor(torch.eye(8)[None], affine=torch.eye(4))
        >>> SmoothForSpacingd("image", [1, 3])({"image": image})["image"][0, 0].numpy().round(2)
        array([0.7 , 0.3 , 0.06, 0.  , 0.  , 0.  , 0.  , 0.  ], dtype=float32)
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if not all(isinstance(v, (int, float)) and v > 0 for v in pixdim):
            raise ConfigError(f"spacing_mm: {list(pixdim)} must be positive numbers in mm, one per axis")
        self.pixdim = tuple(float(v) for v in pixdim)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each image by the smoothed image, with the same geometry."""
        item = dict(data)
        for key in self.key_iterator(item):
            image: MetaTensor = item[key]
            spacing = [float(v) for v in image.pixdim]
            if len(spacing) != len(self.pixdim):
                raise ConfigError(
                    f"spacing_mm: {list(self.pixdim)} must be {len(spacing)} numbers, one per axis of the image"
                )
            self._check_extent(str(item.get("id", key)), image, spacing)
            sigma = [max(0.0, (new / old - 1) / 2) for new, old in zip(self.pixdim, spacing, strict=True)]
            if max(sigma) > 0:
                smooth = gaussian_filter(image.numpy(), (0.0, *sigma), mode="nearest", truncate=_TRUNCATE)
                item[key] = MetaTensor(
                    torch.from_numpy(smooth), meta=image.meta, applied_operations=image.applied_operations
                )
        return item

    def _check_extent(self, name: str, image: MetaTensor, spacing: Sequence[float]) -> None:
        extent_mm = [size * old for size, old in zip(image.shape[1:], spacing, strict=True)]
        new_size = [mm / new for mm, new in zip(extent_mm, self.pixdim, strict=True)]
        extent, spacing_mm = (" x ".join(f"{v:.4g}" for v in values) for values in (extent_mm, self.pixdim))
        if min(new_size) < _FEWEST_VOXELS - 1e-3:
            raise ScanError(
                f"{name}: {extent} mm are less than {_FEWEST_VOXELS} voxels along an axis at spacing_mm {spacing_mm}; "
                "choose a finer spacing"
            )
        num_bytes = 4 * image.shape[0] * math.prod(new_size)
        if num_bytes > MAX_BYTES:
            raise ScanError(
                f"{name}: {extent} mm are {num_bytes / 1024**3:.1f} GiB at spacing_mm {spacing_mm}, and the limit is "
                f"{MAX_BYTES / 1024**3:g} GiB; correct the scan's spacing or unit, or choose a coarser spacing"
            )


SmoothForSpacingD = SmoothForSpacingDict = SmoothForSpacingd
