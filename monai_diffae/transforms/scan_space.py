"""Bringing decoded images back to their scans' space, for tools that run a bundle's components one by one."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from monai_diffae.data.scans import Scan, is_picture
from monai_diffae.data.slices import in_file_axes
from monai_diffae.errors import ConfigError
from monai_diffae.transforms.native import NativeSpace, check_invertible


class ToScanSpaced(MapTransform):
    """Brings a decoded image back to the space of its scan, as :meth:`NativeSpace.back` does.

    It is the ``postprocessing`` of a bundle, which an application like MONAI Label runs after the inferer. In MONAI's
    layout, a volume is float32 ``[1, X, Y, Z]``, a picture (PNG or JPEG) ``[W, H]`` of uint8, or uint16 if the scan has
    larger values, and any other 2D image float32 ``[1, H, W, 1]``. The size and affine are also set in the metadata of
    the scan's image, from which MONAI Label takes them.

    Args:
        keys: decoded images ``[1, *S]`` in the model's range.
        preprocessing: the bundle's preprocessing, which is inverted.
        ref_image: key of the preprocessed scan. The item has its file under ``<ref_image>_path``, where MONAI Label
            puts it.
        allow_missing_keys: ignore keys that an item does not have.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from monai.transforms import Compose
        >>> from monai_diffae.data.scans import write_scan
        >>> from monai_diffae.transforms import ReadScand, ToModelRanged
        >>> preprocessing = Compose([ReadScand("image", 2), ToModelRanged("image", method="minmax")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_scan(Path(folder) / "a.png", np.arange(6.0).reshape(1, 2, 3), value_range=(0, 255))
        ...     item = preprocessing({"image": str(path), "image_path": str(path)})
        ...     ToScanSpaced("pred", preprocessing)({**item, "pred": item["image"]})["pred"]
        metatensor([[0, 3],
                [1, 4],
                [2, 5]], dtype=torch.uint8)
    """

    def __init__(
        self,
        keys: KeysCollection,
        preprocessing: Callable[[Any], Any],
        ref_image: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_invertible(preprocessing)
        self.preprocessing, self.ref_image = preprocessing, ref_image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the decoded images, and set the size and affine of the scan's image."""
        item: dict[Any, Any] = dict(data)
        path = item.get(f"{self.ref_image}_path")
        if not path:
            raise ConfigError(f"{self.ref_image}_path: is missing; give the file of the scan that was reconstructed")
        native = NativeSpace(self.preprocessing, {**item, self.ref_image: path}, self.ref_image)
        for key in self.key_iterator(item):
            pred = torch.as_tensor(item[key])
            if len(pred) != 1:
                raise ConfigError(
                    f"{key}: has {len(pred)} channels, which the application's writer would take for an axis; use "
                    "monai-diffae reconstruct"
                )
            array, scan = in_file_axes(native.back(pred), native.scan)
            array = _in_monai_layout(array, scan, str(path))
            affine = torch.from_numpy(scan.affine)
            item[key] = MetaTensor(torch.from_numpy(array), affine=affine)
            image = torch.as_tensor(item[self.ref_image])
            size = np.array(array.shape if array.ndim == 2 else array.shape[1:])
            geometry = {"spatial_shape": size, "original_affine": scan.affine}
            item[self.ref_image] = MetaTensor(image, meta={**getattr(image, "meta", {}), **geometry})
        return item


def _in_monai_layout(array: NDArray[np.float32], scan: Scan, path: str) -> NDArray[Any]:
    """An image ``[1, *native S]`` in the layout and type that MONAI's writers expect."""
    if scan.spatial_dims == 3:
        return array
    if not is_picture(path):
        return array[..., None]
    dtype = np.uint8 if scan.array.max() <= 255 else np.uint16
    whole: NDArray[Any] = np.round(array[0]).clip(0, np.iinfo(dtype).max).astype(dtype)
    return np.ascontiguousarray(whole.T)
