"""The native space of a case: of one image, or of a volume whose slices a 2D model takes one by one."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffae.data.scans import Axis, Scan, slice_volume
from monai_diffae.data.slices import AXES, flat_axis, insert_slices, ras_shape
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms.native import NativeSpace, check_reader
from monai_diffae.transforms.reading import ReadScand

logger = logging.getLogger(__name__)


class CaseSpace:
    """Preprocesses a case into N images of the model, and converts N such images back to the case's own space.

    N is 1 for a whole image and for one slice of a volume, ``item["slice"]``. If a 2D model gets a volume, N is the
    number of its slices that ``choose_slices`` returns for their total, and the way back leads into the volume.
    ``spaces`` has the images by the index of their slice, None for a whole image, and ``scan`` the scan or slice.
    """

    def __init__(
        self,
        preprocessing: Callable[[Any], Any],
        item: Mapping[str, Any],
        choose_slices: Callable[[int], Sequence[int]],
    ) -> None:
        reader: ReadScand = check_reader(preprocessing)[0]
        self._preprocessing = preprocessing
        self._axis: Axis | None = None
        self.spaces: dict[int | None, NativeSpace] = {}
        if reader.spatial_dims == 2:
            self._open_2d(reader, item, choose_slices)
            return
        if item.get("slice") is not None:
            raise ConfigError(f"slice: is {item['slice']}, but this bundle takes whole volumes; leave it out")
        whole = NativeSpace(preprocessing, item)
        self.scan, self.spaces[None] = whole.scan, whole

    def _open_2d(
        self, reader: ReadScand, item: Mapping[str, Any], choose_slices: Callable[[int], Sequence[int]]
    ) -> None:
        scans = {str(name): scan for name, scan in reader.read_whole(item).items()}
        item, index = {name: value for name, value in item.items() if name != "slice"}, item.get("slice")
        self.scan = scans["image"]
        flat = flat_axis(ras_shape(self.scan)) if self.scan.spatial_dims == 3 else None
        if self.scan.spatial_dims == 2 or flat is not None:  # a picture, or a volume that is one image
            if index is not None:
                raise ConfigError(f"slice: is {index}, but the image is 2D and has no slices; leave it out")
            self._axis = flat
            self.spaces[None] = NativeSpace(self._preprocessing, {**item, **scans})
        elif index is not None:
            one = NativeSpace(self._preprocessing, {**item, **_slice_all(scans, reader.axis, index)})
            self.scan, self.spaces[index] = one.scan, one
        else:
            self._axis = reader.axis
            self._open_slices(item, scans, reader.axis, choose_slices(ras_shape(self.scan)[AXES[reader.axis]]))

    def _open_slices(
        self, item: Mapping[str, Any], scans: Mapping[str, Scan], axis: Axis, chosen: Sequence[int]
    ) -> None:
        """Preprocess slices. One that cannot be used, such as an empty one, is skipped."""
        error: ScanError | None = None
        for index in chosen:
            slices = _slice_all(scans, axis, index)  # all images have this slice, or none can be used
            try:
                self.spaces[index] = NativeSpace(self._preprocessing, {**item, **slices})
            except ScanError as caught:
                error = error or caught
        num_skipped = len(chosen) - len(self.spaces)
        if error is not None and not self.spaces:
            raise ScanError(f"none of the {num_skipped} slices can be used; the first: {error}")
        if error is not None:
            logger.warning("%d of %d slices are skipped; the first: %s", num_skipped, len(chosen), error)

    @property
    def field(self) -> NDArray[np.bool_]:
        """``[*native S]``, True for voxels within the model's field of view."""
        fields = [space.field[None] for space in self.spaces.values()]
        return self._gather(fields, np.zeros((1, *self.scan.array.shape[1:]), np.bool_))[0]

    def inputs(self, key: str) -> torch.Tensor:
        """The preprocessed images (N, C, *S) under a key, in the model's range."""
        return torch.stack([space.images[key].as_tensor().float() for space in self.spaces.values()])

    def back(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Convert images of the model, (N, C, *S), to the scan's units; where none is known, it is the lowest value."""
        return self._gather(self._each(NativeSpace.back, images), self.scan.empty)

    def back_difference(self, differences: torch.Tensor) -> NDArray[np.float32]:
        """Convert differences of two images of the model, (N, C, *S), to ``[C, *native S]``; 0 where none is known."""
        return self._gather(self._each(NativeSpace.back_difference, differences), np.zeros_like(self.scan.array))

    def add_difference(self, differences: torch.Tensor) -> NDArray[np.float32]:
        """Add differences (N, C, *S) to the scan: ``[C, *native S]``, the scan to the bit where one is 0 or unknown."""
        return self.scan.array + self.back_difference(differences)

    def back_map(self, maps: torch.Tensor) -> NDArray[np.float32]:
        """Convert maps (N, C', *S) to ``[C', *native S]`` without rescaling their values; 0 where none is known."""
        parts = self._each(NativeSpace.back_map, maps)
        return self._gather(parts, np.zeros((maps.shape[1], *self.scan.array.shape[1:]), np.float32))

    def back_mask(self, masks: torch.Tensor) -> NDArray[np.uint8]:
        """Convert masks (N, C', *S) to uint8 ``[C', *native S]``, with the nearest value; 0 where none is known."""
        parts = self._each(NativeSpace.back_mask, masks)
        return self._gather(parts, np.zeros((masks.shape[1], *self.scan.array.shape[1:]), np.uint8))

    def _each(self, convert: Callable[[NativeSpace, torch.Tensor], NDArray[Any]], images: torch.Tensor) -> list[Any]:
        if len(images) != len(self.spaces):
            raise ConfigError(f"there are {len(images)} images, but the case has {len(self.spaces)}; give one for each")
        return [convert(space, image) for space, image in zip(self.spaces.values(), images, strict=True)]

    def _gather(self, parts: list[NDArray[Any]], background: NDArray[Any]) -> NDArray[Any]:
        if self._axis is None:
            return parts[0]
        slices = {0 if index is None else index: part for index, part in zip(self.spaces, parts, strict=True)}
        return insert_slices(background, self.scan.affine, self._axis, slices)


def _slice_all(scans: Mapping[str, Scan], axis: Axis, index: int) -> dict[str, Scan]:
    return {name: slice_volume(scan, axis, index) for name, scan in scans.items()}
