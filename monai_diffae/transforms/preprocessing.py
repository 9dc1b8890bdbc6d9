"""Bring volumes to the axes and the spacing of a model, whatever the rounding of their affine, without aliasing."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL, zoom_affine
from monai.transforms import Crop, InvertibleTransform, MapTransform, SpatialResample
from monai.transforms.spatial.functional import orientation
from monai.transforms.utils import generate_spatial_bounding_box
from monai.utils import TraceKeys, ensure_tuple
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from monai_diffae.data.formats.axes import ras_orientation
from monai_diffae.data.formats.scan import MAX_BYTES, Floats
from monai_diffae.errors import ConfigError, ScanError, counted
from monai_diffae.policies import Range, Region, check_choice
from monai_diffae.transforms.reading import Item

_DECIMALS = 3  # of a size in voxels before it is rounded: 13.4999999 and 13.5 are the same size
_FEWEST_VOXELS = 2  # along an axis, at the new spacing
_TRUNCATE = 4.0001  # standard deviations; with 4, rounding would decide about the last voxel at 2.75 mm for 1 mm


class ToRASd(MapTransform, InvertibleTransform):
    """Reorders and flips the axes of each volume to the closest RAS order.

    MONAI's ``Orientationd`` (1.6.1) lets the last digit of the affine decide about a volume that is tilted by 45
    degrees, and decides again on the way back. Here the volume's direction decides, once.

    Args:
        keys: volumes ``[C, X, Y, Z]`` as MetaTensor.

    Example:
        >>> image = MetaTensor(torch.arange(6.0).reshape(1, 1, 2, 3), affine=torch.diag(torch.tensor([1.0, -1, 1, 1])))
        >>> ToRASd("image")({"image": image})["image"][0, 0].tolist()
        [[3.0, 4.0, 5.0], [0.0, 1.0, 2.0]]
    """

    def __call__(self, data: Item) -> Item:
        """Replace each volume by the reordered one."""
        item = dict(data)
        for key in self.key_iterator(item):
            affine = item[key].affine.numpy()
            info = self.get_transform_info()
            item[key] = orientation(item[key], affine, ras_orientation(affine), lazy=False, transform_info=info)
        return item

    def inverse(self, data: Item) -> Item:
        """Return each volume to its own order."""
        item = dict(data)
        for key in self.key_iterator(item):
            record = self.pop_transform(item[key])
            own = ras_orientation(record[TraceKeys.EXTRA_INFO]["original_affine"])
            back, affine = nib.orientations.ornt_transform(ras_orientation(np.eye(4)), own), item[key].affine.numpy()
            with self.trace_transform(False):
                info = self.get_transform_info()
                item[key] = orientation(item[key], affine, back, lazy=False, transform_info=info)
        return item


class ToSpacingd(MapTransform, InvertibleTransform):
    """Resamples each volume to a spacing along its own axes, linearly and with its border values outside.

    With MONAI's ``Spacingd`` (1.6.1), the last digit of an affine can move the grid by a voxel. Here the grid always
    begins at the corner of the volume's bounding box, and sizes are rounded to 0.001 voxels first.

    Args:
        keys: volumes ``[C, X, Y, Z]`` as MetaTensor, whose affine has their spacing.
        pixdim: the new spacing along X, Y and Z in mm. An axis whose spacing differs by less than 0.001 mm keeps it.
        slab: voxels that are resampled at once, which takes 60 bytes for each.

    Example:
        >>> image = MetaTensor(torch.arange(5.0).expand(1, 5, 5, 5), affine=torch.eye(4))
        >>> ToSpacingd("image", [4, 4, 2])({"image": image})["image"][0, 0].tolist()
        [[0.0, 2.0, 4.0], [0.0, 2.0, 4.0]]
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float], slab: int = 1 << 23) -> None:
        MapTransform.__init__(self, keys)
        self.pixdim, self.slab = tuple(float(v) for v in pixdim), slab
        self._resample = SpatialResample(mode="bilinear", padding_mode="border")

    def __call__(self, data: Item) -> Item:
        """Replace each volume by the resampled one."""
        item = dict(data)
        for key in self.key_iterator(item):
            image: MetaTensor = item[key]
            size, affine = spaced_grid(image.shape[1:], image.affine.numpy(), self.pixdim)
            axis = int(np.argmax(size))
            length = max(1, self.slab * size[axis] // math.prod(size))
            whole = torch.empty(len(image), *size)
            for start in range(0, size[axis], length):
                part = whole.narrow(1 + axis, start, min(length, size[axis] - start))
                corner = affine.copy()
                corner[:3, 3] += affine[:3, axis] * start
                slab: Any = self._resample(image, dst_affine=torch.from_numpy(corner), spatial_size=part.shape[1:])
                part.copy_(slab.as_tensor())
            # the way back starts from the affine, so the record of one slab is that of all
            item[key] = MetaTensor(whole, meta=slab.meta, applied_operations=slab.applied_operations)
            item[key].affine = torch.from_numpy(affine)
        return item

    def inverse(self, data: Item) -> Item:
        """Resample each volume to its own grid."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._resample.inverse(item[key])
        return item


class SmoothForSpacingd(MapTransform):
    """Smooths each image along the axes that `ToSpacingd` will make coarser, to prevent aliasing.

    The standard deviation of the Gaussian is ``(factor - 1) / 2`` voxels, where ``factor`` is the new spacing divided
    by the image's own, as in MONAI's ``Resized(anti_aliasing=True)``; axes that do not get coarser are not smoothed.
    The transform has no inverse and needs none, because it changes neither sizes nor positions.

    Args:
        keys: images ``[C, *S]`` as MetaTensor, whose affine has their spacing.
        pixdim: the spacing that `ToSpacingd` gets, in mm.

    Example:
        >>> image = MetaTensor(torch.eye(8)[None], affine=torch.eye(4))
        >>> SmoothForSpacingd("image", [1, 3])({"image": image})["image"][0, 0].numpy().round(2)
        array([0.7 , 0.3 , 0.06, 0.  , 0.  , 0.  , 0.  , 0.  ], dtype=float32)
    """

    def __init__(self, keys: KeysCollection, pixdim: Sequence[float]) -> None:
        super().__init__(keys)
        self.pixdim = tuple(float(v) for v in pixdim)

    def __call__(self, data: Item) -> Item:
        """Replace each image by the smoothed image, with the same geometry."""
        item = dict(data)
        for key in self.key_iterator(item):
            image: MetaTensor = item[key]
            spacing = [float(v) for v in image.pixdim]
            self._check_extent(str(item.get("id", key)), image, spacing)
            sigma = [max(0.0, (new / old - 1) / 2) for new, old in zip(self.pixdim, spacing, strict=True)]
            if max(sigma) > 0:
                smooth = gaussian_filter(image.numpy(), (0.0, *sigma), mode="nearest", truncate=_TRUNCATE)
                item[key] = MetaTensor(
                    torch.from_numpy(smooth), meta=image.meta, applied_operations=image.applied_operations
                )
        return item

    def _check_extent(self, name: str, image: MetaTensor, spacing: Sequence[float]) -> None:
        extent_mm = np.multiply(image.shape[1:], spacing)
        new_size = extent_mm / self.pixdim
        extent, spacing_mm = (" x ".join(f"{v:.4g}" for v in values) for values in (extent_mm, self.pixdim))
        num_bytes = 4 * image.shape[0] * new_size.prod()
        if min(new_size) < _FEWEST_VOXELS - 1e-3:
            wrong, todo = f"less than {_FEWEST_VOXELS} voxels along an axis", "choose a finer spacing"
        elif num_bytes > MAX_BYTES:
            wrong = f"{num_bytes / 1024**3:.1f} GiB, and the limit is {MAX_BYTES / 1024**3:g} GiB"
            todo = "correct the scan's spacing or unit, or choose a coarser spacing"
        else:
            return
        raise ScanError(f"{name}: at spacing_mm {spacing_mm}, {extent} mm are {wrong}; {todo}")


def spaced_grid(shape: Sequence[int], affine: Floats, spacing_mm: Sequence[float]) -> tuple[list[int], Floats]:
    """The size and the affine of a volume's grid at another spacing; its origin is continuous in ``affine``."""
    own = np.linalg.norm(affine[:3, :3], axis=0)
    grid = zoom_affine(affine, np.where(np.abs(own - spacing_mm) <= AFFINE_TOL, own, spacing_mm), diagonal=False)
    corners = np.array([*itertools.product(*((0.0, n - 1.0) for n in shape))]).T
    corners = np.linalg.solve(grid[:3, :3], affine[:3, :3] @ corners)
    low, high = corners.min(axis=1), corners.max(axis=1)
    grid[:3, 3] = affine[:3, 3] + grid[:3, :3] @ low
    return [int(n) for n in np.round(np.round(high - low + 1, _DECIMALS))], grid


class ToRegiond(MapTransform, InvertibleTransform):
    """Crops each image to the box around the item's mask; what is outside the mask may become background.

    Args:
        keys: images ``[C, *S]`` as MetaTensor, of items with a label map ``"mask"`` on their grid, which is taken out.
        region: ``whole`` changes nothing; ``box`` crops; ``masked`` crops, and sets what is outside the mask to the
            lowest value of each channel.
        margin_mm: margin of the box on each side of the mask, in mm (pixels, if their size is not known).

    Raises:
        ScanError: the item has no mask, or an empty one.

    Example:
        >>> image, mask = (MetaTensor(torch.tensor([[row]])) for row in ([0.0, 1, 2, 3, 4], [0.0, 0, 0, 1, 1]))
        >>> item = {"image": image, "mask": mask}
        >>> ToRegiond("image", "box", margin_mm=1)(item)["image"].tolist()
        [[[2.0, 3.0, 4.0]]]
    """

    def __init__(self, keys: KeysCollection, region: Region = "whole", margin_mm: float = 0.0) -> None:
        super().__init__(keys)
        check_choice("region", region, Region)
        self.region, self.margin_mm = region, margin_mm
        self._crop = Crop()
        self._to_image = SpatialResample(mode="nearest", padding_mode="zeros")

    def __call__(self, data: Item) -> Item:
        """Replace each image by its region."""
        item = dict(data)
        if self.region == "whole":
            return item
        labels = item.pop("mask", None)
        for key in self.key_iterator(item):
            image: MetaTensor = item[key]
            mask = torch.zeros(image.shape[1:], dtype=torch.bool)
            if labels is not None:  # the image's axes may be in another order
                labels_there: Any = self._to_image(labels, dst_affine=image.affine, spatial_size=image.shape[1:])
                mask = labels_there.as_tensor().amax(dim=0) > 0
            if not mask.any():
                wrong = f"has no mask, or an empty one, for region {self.region}"
                raise ScanError(f"{item.get('id', key)}: {wrong}; omit this case")
            if self.region == "masked":
                lowest = image.amin(dim=tuple(range(1, image.ndim)), keepdim=True)
                image = self.push_transform(torch.where(mask, image, lowest), extra_info={"mask": mask})
            margins = [math.ceil(self.margin_mm / float(mm)) for mm in image.pixdim]
            box = generate_spatial_bounding_box(mask[None], margin=margins, allow_smaller=True)
            item[key] = self._crop(image, tuple(map(slice, *box)))
        return item

    def inverse(self, data: Item) -> Item:
        """Return each region to its place; 0 outside."""
        item = dict(data)
        for key in self.key_iterator(item) if self.region != "whole" else ():
            image = self._crop.inverse(item[key])
            if self.region == "masked":
                image = image * self.pop_transform(image)[TraceKeys.EXTRA_INFO]["mask"]
            item[key] = image
        return item


# -- intensities -------------------------------------------------------------------------------------------------------


Method = Literal["percentiles", "window", "minmax", "none"]


class ToModelRanged(MapTransform, InvertibleTransform):
    """Scales each image linearly to the model's range, by its own intensities or by a fixed window.

    A MetaTensor stores the intensities that are mapped to the ends of the range, so that :meth:`inverse` can convert
    it, or another image with its ``applied_operations``, back to the scan's units.

    Args:
        keys: images ``[C, *S]``.
        method: the intensities that are mapped to the ends of ``model_range``: the ``"percentiles"`` of each channel,
            the ``"window"``, or minimum and maximum of each channel (``"minmax"``); values beyond are clipped.
            ``"none"`` keeps the values, which must be in the model's range already. Or a list with one per channel.
        percentiles: two percentiles in 0..100, for ``"percentiles"``.
        window_hu: two intensities, for ``"window"`` (Hounsfield units of a CT; by default soft tissue); or a list with
            two per channel.
        model_range: the range of values that the model works with.

    Example:
        >>> ToModelRanged("image", method="minmax")({"image": torch.tensor([[[0.0, 50.0, 100.0]]])})["image"]
        tensor([[[-1.,  0.,  1.]]])
    """

    def __init__(
        self,
        keys: KeysCollection,
        method: Method | Sequence[Method] = "percentiles",
        percentiles: Range = (0.5, 99.5),
        window_hu: Range | Sequence[Range] = (-160, 240),
        model_range: Range = (-1, 1),
    ) -> None:
        super().__init__(keys)
        for each in ensure_tuple(method):
            check_choice("method", each, Method)
        windows = np.reshape(window_hu, (-1, 2)).tolist()
        for name, (low, high) in (*(("window_hu", window) for window in windows), ("model_range", model_range)):
            if not low < high:
                raise ConfigError(f"{name}: ({low}, {high}) are not two increasing numbers")
        self.method, self.percentiles, self.window_hu = method, percentiles, windows
        self.model_range = model_range

    def __call__(self, data: Item) -> Item:
        """Replace each image by the scaled image, of the same type and geometry."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._scale(item[key], str(item.get("id", key)))
        return item

    def inverse(self, data: Item) -> Item:
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
        image = torch.as_tensor(image).to(torch.float32) if not isinstance(image, Tensor) else image.float()
        low, high = self._ends(image, name)
        to_low, to_high = self.model_range
        if self.method != "none":
            image = (image - low) * ((to_high - to_low) / (high - low)) + to_low
        image = self.push_transform(image, extra_info={"low": low, "high": high}).clamp(*self.model_range)
        if bool(image.min() == image.max()):
            raise ScanError(f"{name}: has only one value in the model's range; check method, window_hu, percentiles")
        return image

    def _ends(self, image: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The intensities that are mapped to the ends of the model's range, each ``[C, 1, ...]``."""
        channels, ones = len(image), [1] * (image.ndim - 1)
        values: NDArray[np.float32] = np.asarray(image.detach().cpu()).reshape(channels, -1)
        methods, windows = (self._per_channel(each, channels) for each in (ensure_tuple(self.method), self.window_hu))
        pairs = [
            window
            if method == "window"
            else self.model_range
            if method == "none"
            # numpy's percentile, because torch.quantile cannot handle more than 16 million voxels
            else np.percentile(channel, self.percentiles if method == "percentiles" else (0, 100))
            for channel, method, window in zip(values, methods, windows, strict=True)
        ]
        if not all(high > low for low, high in pairs):
            raise ScanError(f"{name}: constant between its percentiles; omit it, or use method minmax")
        ends = torch.tensor(np.stack(pairs, axis=1), dtype=torch.float32, device=image.device)
        low_end, high_end = ends.reshape(2, channels, *ones)
        return low_end, high_end

    def _per_channel(self, values: Sequence[Any], channels: int) -> Sequence[Any]:
        if len(values) not in (1, channels):
            raise ConfigError(
                f"intensity: {len(values)} values for {counted(channels, 'channel')}; give one, or one per channel"
            )
        return [*values] * channels if len(values) == 1 else values
