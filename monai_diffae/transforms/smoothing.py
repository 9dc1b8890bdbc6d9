"""Smoothing before a volume is resampled to larger voxels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy.ndimage import gaussian_filter

from monai_diffae.errors import ConfigError


class SmoothForSpacingd(MapTransform):
    """Smooths each image along the axes that ``Spacingd`` will make coarser, so that nothing aliases.

    A Gaussian of ``(factor - 1) / 2`` voxels, ``factor`` being the new spacing over the image's own, as MONAI's
    ``Resized(anti_aliasing=True)`` does; MONAI's (1.6.1) ``Spacingd`` has no such option. Axes that become finer or
    stay are left alone. The way back to the scan cannot undo it, and need not: it leaves sizes and places as they are.

    Args:
        keys: images ``[C, *S]`` as MetaTensor, whose affine tells their spacing.
        pixdim: what ``Spacingd`` is given, in mm.
        allow_missing_keys: leave out keys that an item lacks.

    Raises:
        ConfigError: ``pixdim`` is not one positive number an axis.

    Example:
        >>> image = MetaTensor(torch.eye(8)[None], affine=torch.eye(4))
        >>> SmoothForSpacingd("image", [1, 3])({"image": image})["image"][0, 0].numpy().round(2)
        array([0.7 , 0.3 , 0.06, 0.  , 0.  , 0.  , 0.  , 0.  ], dtype=float32)
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if not all(isinstance(v, (int, float)) and v > 0 for v in pixdim):
            raise ConfigError(f"spacing_mm: {list(pixdim)} are not positive numbers of mm, one an axis")
        self.pixdim = tuple(float(v) for v in pixdim)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each image by the smoothed one, of the same geometry."""
        item = dict(data)
        for key in self.key_iterator(item):
            image: MetaTensor = item[key]
            spacing = [float(v) for v in image.pixdim]
            if len(spacing) != len(self.pixdim):
                raise ConfigError(
                    f"spacing_mm: {list(self.pixdim)} are not {len(spacing)} numbers, one for each axis of the image"
                )
            sigma = [max(0.0, (new / old - 1) / 2) for new, old in zip(self.pixdim, spacing, strict=True)]
            if max(sigma) > 0:
                smooth = gaussian_filter(image.numpy(), (0.0, *sigma), mode="nearest")
                item[key] = MetaTensor(
                    torch.from_numpy(smooth), meta=image.meta, applied_operations=image.applied_operations
                )
        return item


SmoothForSpacingD = SmoothForSpacingDict = SmoothForSpacingd
