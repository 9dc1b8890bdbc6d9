"""Convert images from the model's grid and range back to the own space of a scan, or of a case with many slices."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CopyItemsd, EnsureTyped, InvertibleTransform
from monai.transforms.utils import allow_missing_keys_mode, convert_applied_interp_mode
from monai.utils import TraceKeys
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.data.formats.axes import AXES, Axis, flat_axis, flattened, insert_slices, ras_shape, slice_volume
from monai_diffae.data.formats.scan import Voxels
from monai_diffae.data.scans import Scan
from monai_diffae.errors import ConfigError, ScanError, find_diffae_error, one_line
from monai_diffae.policies import Detail, PathLike
from monai_diffae.transforms.preprocessing import SmoothForSpacingd, ToModelRanged
from monai_diffae.transforms.reading import ReadScand, as_tensor

logger = logging.getLogger(__name__)

_NOTHING_TO_INVERT = (CopyItemsd, EnsureTyped, SmoothForSpacingd)


class NativeSpace:
    """Preprocesses one image of a case, and converts images that the model makes from it back to the scan's space.

    The way back inverts the preprocessing's transforms, with linear interpolation if they interpolate linearly. Outside
    the model's field of view, which the preprocessing crops to, an image has the scan's lowest value, and a difference
    is 0.

    Args:
        preprocessing: a bundle's preprocessing, from the case's item to ``[C, *S]`` in the model's range. It begins
            with `ReadScand`.
        item: the case, as from :meth:`Case.item() <monai_diffae.data.cases.Case.item>`, or with images in memory.

    Attributes:
        image: MetaTensor float32 ``[C, *S]``, the model's input.
        images: all preprocessed images of the item by key, among them ``image``.
        scan: the case's scan (or slice), ``[C, *native S]`` in its own units, with its affine.

    Example:
        >>> preprocessing = Compose([ReadScand("image", 2), ToModelRanged("image", method="minmax")])
        >>> native = NativeSpace(preprocessing, {"image": np.arange(12.0).reshape(1, 3, 4)})
        >>> float(native.image.max()), float(native.back(native.image).max())
        (1.0, 11.0)
    """

    def __init__(self, preprocessing: Callable[[Any], Any], item: Mapping[str, Any]) -> None:
        # a copy, because allow_missing_keys_mode below changes the transforms, also for other threads
        self._transforms = copy.deepcopy(check_reader(preprocessing))
        self._preprocessing = Compose(self._transforms)
        reader: ReadScand = self._transforms[0]
        scans = reader.read(item)
        self.scan = scans["image"]
        self._item: dict[Any, Any] = {**{name: value for name, value in item.items() if name != "slice"}, **scans}
        try:
            read_item: dict[Any, Any] = {**item, **{name: as_tensor(scan) for name, scan in scans.items()}}
            preprocessed: dict[Any, Any] = self._preprocessing(read_item, start=1)
        except Exception as error:  # MONAI wraps errors into others with many lines
            cause = find_diffae_error(error)
            if cause is None:
                name, size = item.get("id", "image"), " x ".join(map(str, self.scan.array.shape[1:]))
                raise ScanError(
                    f"{name}: the preprocessing fails at its size {size} ({one_line(error)}); omit this case, or check "
                    "the preprocessing"
                ) from error
            raise type(cause)(str(cause)) from error
        self.images: dict[Any, MetaTensor] = {k: v for k, v in preprocessed.items() if isinstance(v, MetaTensor)}
        self.image = self.images["image"]

    def replaced_by(self, file: PathLike) -> "NativeSpace":
        """The space of the same case with another file as its image, such as one that was written for this space."""
        return NativeSpace(self._preprocessing, {**self._item, "image": str(file)})

    @cached_property
    def _intensities(self) -> list[InvertibleTransform]:
        return [t for t in reversed(check_invertible(self._preprocessing)) if isinstance(t, ToModelRanged)]

    @cached_property
    def _spatial(self) -> list[InvertibleTransform]:
        transforms = reversed(check_invertible(self._preprocessing))
        return [t for t in transforms if isinstance(t, InvertibleTransform) and not isinstance(t, ToModelRanged)]

    @cached_property
    def field(self) -> NDArray[np.bool_]:
        """Bool ``[*native S]``, True for voxels of the scan within the model's field of view."""
        return np.all(self._weight > 0.501, axis=0)  # of voxels half inside, rounding does not decide

    @cached_property
    def _weight(self) -> Voxels:
        # MONAI pads with zeros when it inverts a crop, so zeros mark voxels outside the field of view
        return self._invert(self._spatial, torch.ones(self.image.shape)).numpy()

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """The scan's values ``[C, 1, ...]`` that are 0 and 1 in the model's range."""
        constants = (self._invert(self._intensities, torch.full(self.image.shape, value)) for value in (0.0, 1.0))
        zero, one = (each.flatten(1)[:, :1].reshape(-1, *[1] * (each.ndim - 1)) for each in constants)
        return zero, one

    def back(self, decoded: Tensor) -> Voxels:
        """Convert an image of the model, ``[C, *S]``, to the scan's space, ``[C, *native S]`` in the scan's units."""
        return np.where(self.field, self._inside(decoded.detach()).numpy(), self.scan.empty)

    def back_difference(self, difference: Tensor) -> Voxels:
        """Convert a difference of two images of the model, ``[C, *S]``, to the scan's space and units; 0 stays 0."""
        return self.native_difference(difference.detach()).numpy()

    def native_difference(self, difference: Tensor) -> Tensor:
        """The result of :meth:`back_difference` as a tensor, with its gradient."""
        # the way back is an affine function of the intensities, and its value at 0 is the offset
        offset = self._inside(torch.zeros(self.image.shape))
        return torch.where(torch.from_numpy(self.field), self._inside(difference) - offset, 0.0)

    def add_difference(self, difference: Tensor) -> Voxels:
        """Add a difference of two images of the model to the scan, which keeps its detail; 0 leaves it to the bit."""
        return self.scan.array + self.back_difference(difference)

    def edited(self, image: Tensor, difference: Tensor, detail: Detail) -> Voxels:
        """A decoded image, with its difference from the plain reconstruction, as an edit of the scan in its units."""
        return self.back(image) if detail == "model" else self.add_difference(difference)

    def storable(self, array: Voxels) -> Voxels:
        """An image ``[C, *native S]`` in the scan's units with the values that a file of its kind can hold."""
        return np.clip(array, 0, 255) if self.scan.suffix == ".png" else array

    def to_model_range(self, array: Voxels) -> Voxels:
        """Scale an array ``[C, *native S]`` in the scan's units to the model's range, without clipping it."""
        return self.scaled(torch.from_numpy(array)).numpy()

    def scaled(self, array: Tensor) -> Tensor:
        """The result of :meth:`to_model_range` as a tensor, with its gradient."""
        # the way back is an affine function of the intensities of each channel
        zero, one = self._ends
        return (array - zero) / (one - zero)

    def back_map(self, maps: Tensor) -> Voxels:
        """Convert maps, ``[C', *S]``, to the scan's space without rescaling them; 0 outside the field of view."""
        self._check_size(maps)
        spatial = self._invert(self._spatial, maps.detach()).numpy()
        inside = spatial / np.where(self.field, self._weight[:1], np.float32(1))
        return np.where(self.field, inside, np.float32(0))

    def back_mask(self, masks: Tensor) -> NDArray[np.uint8]:
        """Convert masks of 0 to 255, ``[C', *S]``, to uint8 in the scan's space, by the nearest value; 0 outside."""
        self._check_size(masks)
        labels = masks.to(torch.uint8)
        if not bool((labels == masks).all()):
            raise ConfigError("the mask has values that are not whole numbers of 0 to 255; threshold it, or use a map")
        inside = self._invert(self._spatial, labels, nearest=True).numpy()
        return np.where(self.field, np.round(inside).astype(np.uint8), np.uint8(0))

    def _inside(self, image: Tensor) -> Tensor:
        """Convert an image; valid where ``field`` is True. Zeros from beyond a crop's edge are divided out."""
        self._check_size(image, channels=len(self.image))
        weight = torch.from_numpy(np.where(self.field, self._weight, np.float32(1)))
        return self._invert(self._intensities, self._invert(self._spatial, image) / weight)

    def _check_size(self, image: Tensor, channels: int | None = None) -> None:
        size = [len(image) if channels is None else channels, *self.image.shape[1:]]
        if list(image.shape) != size:
            raise ConfigError(f"the image has the size {list(image.shape)}, but the case's is {size}; decode this case")

    def _invert(self, transforms: Sequence[InvertibleTransform], image: Tensor, nearest: bool = False) -> Tensor:
        tensor = image.to("cpu", torch.float32)
        plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
        # copies, because MONAI's inverses modify the records (ResizeWithPadOrCrop, SpatialResample)
        meta, operations = copy.deepcopy((self.image.meta, self.image.applied_operations))
        operations = [_nearest(operation) for operation in operations] if nearest else operations
        item: dict[str, Any] = {"image": MetaTensor(plain, meta=meta, applied_operations=operations)}
        with allow_missing_keys_mode(self._preprocessing):  # the item has only one of its images
            for transform in transforms:
                item = transform.inverse(item)
        inverted: Tensor = item["image"].as_tensor().float()
        return inverted


def _nearest(operation: dict[str, Any]) -> dict[str, Any]:
    """The record of a transform, so that its inverse takes the nearest value."""
    nearest: dict[str, Any] = convert_applied_interp_mode(operation)
    if nearest[TraceKeys.CLASS_NAME] == "Resize":  # torch's "nearest" is shifted by half a voxel, and kept for old code
        nearest = convert_applied_interp_mode(operation, "nearest-exact")
    return nearest


def check_reader(preprocessing: Callable[[Any], Any]) -> list[Any]:
    """Check that a preprocessing begins with `ReadScand`, and return its transforms; no scan is read."""
    transforms = list(Compose(preprocessing).flatten().transforms)
    if not (transforms and isinstance(transforms[0], ReadScand)):
        raise ConfigError("preprocessing: must begin with ReadScand, which keeps the scan's own space; put it first")
    return transforms


def check_invertible(preprocessing: Callable[[Any], Any]) -> list[Any]:
    """Check that :class:`NativeSpace` can invert a preprocessing, and return its transforms; no scan is read."""
    transforms = check_reader(preprocessing)
    for transform in transforms[1:]:
        if not isinstance(transform, (InvertibleTransform, *_NOTHING_TO_INVERT)):
            raise ConfigError(f"preprocessing: {type(transform).__name__} cannot be undone; use one that MONAI inverts")
    return transforms


# -- a case ------------------------------------------------------------------------------------------------------------


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
            flat_scans = {name: flattened(scan) for name, scan in scans.items()}
            self.spaces[None] = NativeSpace(self._preprocessing, {**item, **flat_scans})
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
    def native(self) -> NativeSpace:
        """The space of the only image; of several slices, each has its own."""
        (native,) = self.spaces.values()
        return native

    @property
    def field(self) -> NDArray[np.bool_]:
        """``[*native S]``, True for voxels within the model's field of view."""
        fields = [space.field[None] for space in self.spaces.values()]
        return self._gather(fields, np.zeros((1, *self.scan.array.shape[1:]), np.bool_))[0]

    def inputs(self, key: str) -> Tensor:
        """The preprocessed images (N, C, *S) under a key, in the model's range."""
        return torch.stack([space.images[key].as_tensor().float() for space in self.spaces.values()])

    def back(self, images: Tensor) -> Voxels:
        """Convert images of the model, (N, C, *S), to the scan's units; where none is known, it is the lowest value."""
        return self._gather(self._each(NativeSpace.back, images), self.scan.empty)

    def back_difference(self, differences: Tensor) -> Voxels:
        """Convert differences of two images of the model, (N, C, *S), to ``[C, *native S]``; 0 where none is known."""
        return self._gather(self._each(NativeSpace.back_difference, differences), np.zeros_like(self.scan.array))

    def add_difference(self, differences: Tensor) -> Voxels:
        """Add differences (N, C, *S) to the scan: ``[C, *native S]``, the scan to the bit where one is 0 or unknown."""
        return self.scan.array + self.back_difference(differences)

    def back_map(self, maps: Tensor) -> Voxels:
        """Convert maps (N, C', *S) to ``[C', *native S]`` without rescaling their values; 0 where none is known."""
        parts = self._each(NativeSpace.back_map, maps)
        return self._gather(parts, np.zeros((maps.shape[1], *self.scan.array.shape[1:]), np.float32))

    def back_mask(self, masks: Tensor) -> NDArray[np.uint8]:
        """Convert masks (N, C', *S) to uint8 ``[C', *native S]``, with the nearest value; 0 where none is known."""
        parts = self._each(NativeSpace.back_mask, masks)
        return self._gather(parts, np.zeros((masks.shape[1], *self.scan.array.shape[1:]), np.uint8))

    def _each(self, convert: Callable[[NativeSpace, Tensor], NDArray[Any]], images: Tensor) -> list[Any]:
        return [convert(space, image) for space, image in zip(self.spaces.values(), images, strict=True)]

    def _gather(self, parts: list[NDArray[Any]], background: NDArray[Any]) -> NDArray[Any]:
        if self._axis is None:
            return parts[0]
        slices = {0 if index is None else index: part for index, part in zip(self.spaces, parts, strict=True)}
        return insert_slices(background, self.scan.affine, self._axis, slices)


def _slice_all(scans: Mapping[str, Scan], axis: Axis, index: int) -> dict[str, Scan]:
    return {name: slice_volume(scan, axis, index) for name, scan in scans.items()}
