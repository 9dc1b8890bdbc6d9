"""The native space of a case: of one image, or of a volume whose slices a 2D model takes one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffae.data.scans import Axis, Scan, slice_volume
from monai_diffae.data.slices import insert_slices, slice_count
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms.native import NativeSpace, check_invertible
from monai_diffae.transforms.reading import ReadScand

logger = logging.getLogger(__name__)


class CaseSpace:
    """Preprocesses a case into N images of the model, and converts N such images back to the case's own space.

    N is 1 for a whole image and for one slice of a volume. If a 2D model gets a volume, N is the number of its slices
    that are used, and the way back leads into the volume.

    Args:
        preprocessing: a bundle's preprocessing; it begins with `ReadScand`.
        item: the case's images by key, as for `ReadScand`; with ``"slice"`` for one slice of a volume.
        choose_slices: called with the number of slices of a volume that a 2D model gets; returns those to use.
        key: the image of the item that the model decodes.

    Attributes:
        scan: the whole scan, or the slice ``item["slice"]``.
        spaces: the native space of each image, by the index of the slice; the key of a whole image is None.

    Raises:
        ScanError: the scan cannot be used.
        ConfigError: the preprocessing cannot be inverted, or ``item["slice"]`` names a slice of something without
            slices.

    Example:
        >>> from monai_diffae.transforms import ToModelRanged
        >>> preprocessing = [ReadScand("image", 2), ToModelRanged("image", method="minmax")]
        >>> volume = np.arange(24.0).reshape(1, 2, 3, 4)
        >>> space = CaseSpace(preprocessing, {"image": volume}, choose_slices=lambda length: range(1, length, 2))
        >>> images = space.images("image")
        >>> images.shape, space.back(images).shape
        (torch.Size([2, 1, 3, 2]), (1, 2, 3, 4))
        >>> bool((space.back(images) == volume).all())
        True
    """

    def __init__(
        self,
        preprocessing: Callable[[Any], Any],
        item: Mapping[str, Any],
        choose_slices: Callable[[int], Sequence[int]],
        key: str = "image",
    ) -> None:
        reader: ReadScand = check_invertible(preprocessing)[0]
        self._axis: Axis | None = None
        self.spaces: dict[int | None, NativeSpace] = {}
        if reader.spatial_dims == 3 or item.get("slice") is not None:
            _check_slice(reader, item, key)
            native = NativeSpace(preprocessing, item, key)
            self.scan, self.spaces = native.scan, {item.get("slice"): native}
            return
        scans = reader.read_whole(item)
        self.scan = scans[key]
        if self.scan.spatial_dims == 2:
            self.spaces = {None: NativeSpace(preprocessing, item, key)}
            return
        self._axis = reader.axis
        self.spaces = dict(_slice_spaces(preprocessing, item, scans, choose_slices, key).items())

    @property
    def field(self) -> NDArray[np.bool_]:
        """``[*native S]``, True for voxels within the model's field of view."""
        fields = [space.field[None] for space in self.spaces.values()]
        return self._gather(fields, np.zeros((1, *self.scan.array.shape[1:]), np.bool_))[0]

    def images(self, key: str) -> torch.Tensor:
        """The preprocessed images (N, C, *S) under a key, in the model's range."""
        return torch.stack([space.images[key].as_tensor().float() for space in self.spaces.values()])

    def back(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Convert images of the model, (N, C, *S), to the case's space, ``[C, *native S]`` in the scan's units.

        Outside the model's field of view, and in slices that are not used, the scan keeps its own values.

        Raises:
            ConfigError: the number or size of the images is not that of the case.
        """
        return self._gather(self._each(NativeSpace.back, images), self.scan.array)

    def back_difference(self, differences: torch.Tensor) -> NDArray[np.float32]:
        """Convert differences of two images of the model, (N, C, *S), to ``[C, *native S]``; 0 where none is known.

        Raises:
            ConfigError: the number or size of the images is not that of the case.
        """
        return self._gather(self._each(NativeSpace.back_difference, differences), np.zeros_like(self.scan.array))

    def back_map(self, maps: torch.Tensor) -> NDArray[np.float32]:
        """Convert maps (N, C', *S) to ``[C', *native S]`` without rescaling their values; 0 where none is known.

        Raises:
            ConfigError: the number or size of the maps is not that of the case.
        """
        parts = self._each(NativeSpace.back_map, maps)
        return self._gather(parts, np.zeros((maps.shape[1], *self.scan.array.shape[1:]), np.float32))

    def back_mask(self, masks: torch.Tensor) -> NDArray[np.uint8]:
        """Convert masks (N, C', *S) to uint8 ``[C', *native S]``, with the nearest value; 0 where none is known.

        Raises:
            ConfigError: the number or size of the masks is not that of the case, or they hold other values than whole
                numbers of 0 to 255.
        """
        parts = self._each(NativeSpace.back_mask, masks)
        return self._gather(parts, np.zeros((masks.shape[1], *self.scan.array.shape[1:]), np.uint8))

    def _each(self, convert: Callable[[NativeSpace, torch.Tensor], NDArray[Any]], images: torch.Tensor) -> list[Any]:
        if len(images) != len(self.spaces):
            raise ConfigError(f"there are {len(images)} images, but the case has {len(self.spaces)}; give one for each")
        return [convert(space, image) for space, image in zip(self.spaces.values(), images, strict=True)]

    def _gather(self, parts: list[NDArray[Any]], background: NDArray[Any]) -> NDArray[Any]:
        if self._axis is None:
            return parts[0]
        slices = {index: part for index, part in zip(self.spaces, parts, strict=True) if index is not None}
        return insert_slices(background, self.scan.affine, self._axis, slices)


def _check_slice(reader: ReadScand, item: Mapping[str, Any], key: str) -> None:
    if item.get("slice") is None:
        return
    if reader.spatial_dims == 3:
        raise ConfigError(f"slice: is {item['slice']}, but this bundle takes whole volumes; leave it out")
    if reader.read_whole(item)[key].spatial_dims == 2:
        raise ConfigError(f"slice: is {item['slice']}, but the image is 2D and has no slices; leave it out")


def _slice_spaces(
    preprocessing: Callable[[Any], Any],
    item: Mapping[str, Any],
    scans: Mapping[Any, Scan],
    choose_slices: Callable[[int], Sequence[int]],
    key: str,
) -> dict[int, NativeSpace]:
    """The native space of each usable slice. A slice that cannot be used, such as an empty one, is skipped.

    Raises:
        ScanError: no slice can be used.
    """
    reader: ReadScand = check_invertible(preprocessing)[0]
    num_slices = slice_count(scans[key], reader.axis)
    spaces: dict[int, NativeSpace] = {}
    error: ScanError | None = None
    chosen = choose_slices(num_slices)
    for index in chosen:
        slices = {name: slice_volume(scan, reader.axis, index) for name, scan in scans.items()}
        try:
            spaces[index] = NativeSpace(preprocessing, {**item, **slices}, key)
        except ScanError as caught:
            error = error or caught
    if error is not None and not spaces:
        raise ScanError(f"none of the {len(chosen)} slices can be used; the first: {error}")
    if error is not None:
        logger.warning("%d of %d slices are skipped; the first: %s", len(chosen) - len(spaces), len(chosen), error)
    return spaces
