"""Intensities to the range that the model works in."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError, ScanError

Method = Literal["percentiles", "window", "minmax", "none"]


class ToModelRanged(MapTransform, InvertibleTransform):
    """Maps each image linearly to the model's range, by its own intensities or by a fixed window.

    A MetaTensor remembers the intensities that became the ends of the range, so that :meth:`inverse` can bring it, or
    another image with its ``applied_operations``, back to the scan's units.

    Args:
        keys: images ``[C, *S]``.
        method: what becomes the ends of ``model_range``: the image's ``"percentiles"``, the ``"window"``, its minimum
            and maximum (``"minmax"``); ``"none"`` leaves the values, which then are in the range already.
        percentiles: two of 0..100, for ``"percentiles"``.
        window_hu: two intensities, for ``"window"`` (Hounsfield units of a CT; soft tissue by default).
        model_range: the values that the model works with.
        clip: cut off what is beyond.
        channel_wise: give each channel percentiles (or minimum and maximum) of its own.
        allow_missing_keys: leave out keys that an item lacks.

    Raises:
        ConfigError: the parameters make no sense.
        ScanError: nothing but one value is left of an image (on call).

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
        if method not in ("percentiles", "window", "minmax", "none"):
            raise ConfigError(f"method: '{method}' is not one of percentiles, window, minmax, none")
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ConfigError(f"percentiles: {tuple(percentiles)} are not two rising numbers of 0..100")
        for name, (low, high) in {"window_hu": window_hu, "model_range": model_range}.items():
            if not low < high:
                raise ConfigError(f"{name}: ({low}, {high}) are not two rising numbers")
        self.method, self.percentiles, self.window_hu = method, percentiles, window_hu
        self.model_range, self.clip, self.channel_wise = model_range, clip, channel_wise

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each image by the mapped one, of the same type and geometry."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._map(item[key], str(item.get("id", key)))
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring each image back to the intensities that it came from; what was clipped stays at the ends."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            ends = self.pop_transform(image)[TraceKeys.EXTRA_INFO]
            if self.method != "none":
                low, high = ends["low"].to(image.device), ends["high"].to(image.device)
                to_low, to_high = self.model_range
                item[key] = (image - to_low) * ((high - low) / (to_high - to_low)) + low
        return item

    def _map(self, image: Any, name: str) -> Any:
        image = torch.as_tensor(image).to(torch.float32) if not isinstance(image, torch.Tensor) else image.float()
        low, high = self._ends(image, name)
        to_low, to_high = self.model_range
        if self.method != "none":
            image = (image - low) * ((to_high - to_low) / (high - low)) + to_low
        image = self.push_transform(image, extra_info={"low": low, "high": high})
        if self.clip:
            image = image.clamp(*self.model_range)
        if bool(image.min() == image.max()):
            raise ScanError(
                f"{name}: one value only is left in the model's range; check method, window_hu, percentiles"
            )
        return image

    def _ends(self, image: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The intensities that become the ends of the model's range, ``[C, 1, ...]`` each."""
        channels, ones = len(image), [1] * (image.ndim - 1)
        if self.method in ("window", "none"):
            fixed = self.window_hu if self.method == "window" else self.model_range
            low, high = (np.full(channels, v, np.float64) for v in fixed)
        else:
            values: NDArray[np.float32] = np.asarray(image.detach().cpu()).reshape(channels, -1)
            values = values if self.channel_wise else values.reshape(1, -1)
            # numpy's, because torch.quantile refuses more than 16 million voxels
            wanted = self.percentiles if self.method == "percentiles" else (0, 100)
            low, high = np.broadcast_to(np.percentile(values, wanted, axis=1), (2, channels))
        if not (high > low).all():
            raise ScanError(
                f"{name}: constant between its percentiles, nothing to scale; leave it out or use method minmax"
            )
        return (
            torch.tensor(low.reshape(channels, *ones), dtype=torch.float32, device=image.device),
            torch.tensor(high.reshape(channels, *ones), dtype=torch.float32, device=image.device),
        )


ToModelRangeD = ToModelRangeDict = ToModelRanged
