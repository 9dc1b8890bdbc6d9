"""Scale intensities to the model's range."""

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.policies import check_choice

Method = Literal["percentiles", "window", "minmax", "none"]


class ToModelRanged(MapTransform, InvertibleTransform):
    """Scales each image linearly to the model's range, by its own intensities or by a fixed window.

    A MetaTensor stores the intensities that are mapped to the ends of the range, so that :meth:`inverse` can convert
    it, or another image with its ``applied_operations``, back to the scan's units.

    Args:
        keys: images ``[C, *S]``.
        method: the intensities that are mapped to the ends of ``model_range``: the image's ``"percentiles"``, the
            ``"window"``, or minimum and maximum (``"minmax"``). ``"none"`` keeps the values, which must be in the
            model's range already.
        percentiles: two percentiles in 0..100, for ``"percentiles"``.
        window_hu: two intensities, for ``"window"`` (Hounsfield units of a CT; by default soft tissue).
        model_range: the range of values that the model works with.
        clip: clip values beyond the range.
        channel_wise: use the percentiles (or minimum and maximum) of each channel, not those of the whole image.
        allow_missing_keys: skip keys that an item does not have.

    Example:
        >>> ToModelRanged("image", method="minmax")({"image": torch.tensor([[[0.0, 50.0, 100.0]]])})["image"]
        tensor([[[-1.,  0.,  1.]]])
    """

    def __init__(
        self,
        keys: KeysCollection,
        method: Method = "percentiles",
        percentiles: tuple[float, float] = (0.5, 99.5),
        window_hu: tuple[float, float] = (-160, 240),
        model_range: tuple[float, float] = (-1, 1),
        clip: bool = True,
        channel_wise: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_choice("method", method, Method)
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ConfigError(f"percentiles: {tuple(percentiles)} are not two increasing numbers in 0..100")
        for name, (low, high) in {"window_hu": window_hu, "model_range": model_range}.items():
            if not low < high:
                raise ConfigError(f"{name}: ({low}, {high}) are not two increasing numbers")
        self.method, self.percentiles, self.window_hu = method, percentiles, window_hu
        self.model_range, self.clip, self.channel_wise = model_range, clip, channel_wise

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each image by the scaled image, of the same type and geometry."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._scale(item[key], str(item.get("id", key)))
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert each image back to its original intensities; clipped values stay clipped."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            ends = self.pop_transform(image)[TraceKeys.EXTRA_INFO]
            if self.method != "none":
                low, high = ends["low"].to(image.device), ends["high"].to(image.device)
                to_low, to_high = self.model_range
                item[key] = (image - to_low) * ((high - low) / (to_high - to_low)) + low
        return item

    def _scale(self, image: Any, name: str) -> Any:
        image = torch.as_tensor(image).to(torch.float32) if not isinstance(image, torch.Tensor) else image.float()
        low, high = self._ends(image, name)
        to_low, to_high = self.model_range
        if self.method != "none":
            image = (image - low) * ((to_high - to_low) / (high - low)) + to_low
        image = self.push_transform(image, extra_info={"low": low, "high": high})
        if self.clip:
            image = image.clamp(*self.model_range)
        if bool(image.min() == image.max()):
            raise ScanError(f"{name}: has only one value in the model's range; check method, window_hu, percentiles")
        return image

    def _ends(self, image: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The intensities that are mapped to the ends of the model's range, each ``[C, 1, ...]``."""
        channels, ones = len(image), [1] * (image.ndim - 1)
        if self.method in ("window", "none"):
            fixed = self.window_hu if self.method == "window" else self.model_range
            low, high = (np.full(channels, v, np.float64) for v in fixed)
        else:
            values: NDArray[np.float32] = np.asarray(image.detach().cpu()).reshape(channels, -1)
            values = values if self.channel_wise else values.reshape(1, -1)
            # numpy's percentile, because torch.quantile cannot handle more than 16 million voxels
            percentiles = self.percentiles if self.method == "percentiles" else (0, 100)
            low, high = np.broadcast_to(np.percentile(values, percentiles, axis=1), (2, channels))
        if not (high > low).all():
            raise ScanError(f"{name}: constant between its percentiles; omit it, or use method minmax")
        ends = torch.tensor(np.stack([low, high]), dtype=torch.float32, device=image.device)
        low_end, high_end = ends.reshape(2, channels, *ones)
        return low_end, high_end
