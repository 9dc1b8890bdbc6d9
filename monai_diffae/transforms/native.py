"""From the model's grid and range back to the scan's own space."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CopyItemsd, EnsureTyped, InvertibleTransform
from monai.transforms.utils import allow_missing_keys_mode
from numpy.typing import DTypeLike, NDArray

from monai_diffae.data.scans import Scan, scan_suffix, write_scan
from monai_diffae.errors import ConfigError, find_diffae_error
from monai_diffae.transforms.intensity import ToModelRanged
from monai_diffae.transforms.reading import ReadScand, as_tensor
from monai_diffae.transforms.smoothing import SmoothForSpacingd

_PICTURES = (".png", ".jpg", ".jpeg")
_KEEP_PLACES = (CopyItemsd, EnsureTyped, SmoothForSpacingd)  # nothing to undo


class NativeSpace:
    """One case on its way to the model, and the way back for images that the model makes of it.

    The way back undoes the preprocessing's transforms, with linear interpolation where they are linear. Where the
    preprocessing has cropped, the model saw nothing: there an image keeps the scan's own values, and a difference is 0.

    Args:
        preprocessing: a bundle's, from the case's item to ``[C, *S]`` in the model's range; begins with `ReadScand`.
        item: the case, as from :meth:`Case.item() <monai_diffae.data.cases.Case.item>`.
        key: the image of the item that the model decodes.

    Attributes:
        image: MetaTensor float32 ``[C, *S]``, what the model takes.
        scan: the case's scan, or slice, ``[C, *native S]`` in its own units, with its affine.
        field: bool ``[*native S]``, which voxels of the scan the model's image covers.
        suffix: what a file of it ends with: ``.png`` for 8-bit PNG and JPEG of one or three channels, else ``.nii.gz``.

    Raises:
        ScanError: the scan cannot be used.
        ConfigError: the preprocessing has a transform that cannot be undone, or does not begin with `ReadScand`.

    Example:
        >>> import tempfile
        >>> preprocessing = Compose([ReadScand("image", 2), ToModelRanged("image", method="minmax")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_scan(Path(folder) / "a.nii.gz", np.arange(12.0).reshape(1, 3, 4))
        ...     native = NativeSpace(preprocessing, {"image": str(path)})
        >>> float(native.image.max()), float(native.back(native.image).max())
        (1.0, 11.0)
    """

    def __init__(self, preprocessing: Callable[[Any], Any], item: Mapping[str, Any], key: str = "image") -> None:
        transforms = check_invertible(preprocessing)
        self._key, self._preprocessing = key, Compose(transforms)
        undoable = [t for t in reversed(transforms) if isinstance(t, InvertibleTransform)]
        self._intensities = [t for t in undoable if isinstance(t, ToModelRanged)]
        self._spatial = [t for t in undoable if not isinstance(t, ToModelRanged)]
        reader: ReadScand = transforms[0]
        scans = reader.read(item)
        self.scan = scans[key]
        try:
            read: dict[Any, Any] = {**item, **{name: as_tensor(scan) for name, scan in scans.items()}}
            self.image: MetaTensor = self._preprocessing(read, start=1)[key]
        except Exception as error:  # MONAI wraps it into one of many lines
            known = find_diffae_error(error)
            if known is None:
                raise
            raise type(known)(str(known)) from error
        # the zeros that MONAI pads with when it undoes a crop show what the model's image does not cover
        self._weight = self._undo(self._spatial, torch.ones(self.image.shape))
        self.field: NDArray[np.bool_] = np.all(self._weight > 0.5, axis=0)
        files = item[key] if isinstance(item[key], (list, tuple)) else [item[key]]
        is_picture = scan_suffix(files[0]) in _PICTURES and len(self.scan.array) in (1, 3)
        self.suffix = ".png" if is_picture and self.scan.array.max() <= 255 else ".nii.gz"

    def back(self, decoded: torch.Tensor) -> NDArray[np.float32]:
        """An image of the model, ``[C, *S]`` in its range, in the scan's space: ``[C, *native S]`` in its units.

        Raises:
            ConfigError: it has not the size of the model's image.
        """
        return np.where(self.field, self._inside(decoded), self.scan.array)

    def back_difference(self, difference: torch.Tensor) -> NDArray[np.float32]:
        """A difference of two images of the model, ``[C, *S]``: ``[C, *native S]`` in the scan's units.

        It is the difference of what :meth:`back` makes of the two, so 0 stays 0.

        Raises:
            ConfigError: it has not the size of the model's image.
        """
        # the way back is affine in the intensities: its offset is what it makes of 0
        offset = self._inside(torch.zeros(self.image.shape))
        return np.where(self.field, self._inside(difference) - offset, np.float32(0))

    def _inside(self, image: torch.Tensor) -> NDArray[np.float32]:
        """Right where ``field`` is true: the zeros beyond a crop's edge are weighed out there."""
        if image.shape != self.image.shape:
            raise ConfigError(
                f"the image to bring back has the size {list(image.shape)}, the case's is {list(self.image.shape)}; "
                "give one that was decoded from this case"
            )
        spatial = self._undo(self._spatial, image) / np.where(self.field, self._weight, np.float32(1))
        return self._undo(self._intensities, torch.from_numpy(spatial))

    def _undo(self, transforms: Sequence[InvertibleTransform], image: torch.Tensor) -> NDArray[np.float32]:
        tensor = image.detach().to("cpu", torch.float32)
        plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
        # copies, because MONAI's inverses take their records apart (ResizeWithPadOrCrop, SpatialResample)
        meta, operations = copy.deepcopy((self.image.meta, self.image.applied_operations))
        undone: dict[str, Any] = {self._key: MetaTensor(plain, meta=meta, applied_operations=operations)}
        with allow_missing_keys_mode(self._preprocessing):  # the item's other images are not there
            for transform in transforms:
                undone = transform.inverse(undone)
        return np.asarray(undone[self._key].as_tensor().numpy(), np.float32)


def write_native(
    path: str | os.PathLike[str], array: NDArray[np.float32], scan: Scan, dtype: DTypeLike | None = None
) -> Path:
    """Write an image in a scan's space as NIfTI with the scan's affine, or as PNG in its own grey values, atomically.

    Args:
        path: ``.nii.gz`` or, for pictures, ``.png``: see :attr:`NativeSpace.suffix`.
        array: ``[C, *native S]`` in the scan's units. PNG holds them rounded and cut to 0..255: 37.2 becomes 37.
        scan: whose space it is. If it is a volume of a NIfTI file, the image gets the file's type, units and codes, and
            what its type cannot hold is cut off; otherwise a scan of whole numbers gives whole numbers, rounded, in the
            smallest of uint8, int16, uint16, int32 that holds both the scan and the array; all else is float32.
        dtype: for NIfTI: how the values are stored all the same; float32 for differences.

    Raises:
        ConfigError: ``array`` has another size than the scan, or the suffix does not go with it.
        MachineError: the disk is full, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> scan = Scan(np.zeros((1, 2, 2), np.float32), np.eye(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_native(Path(folder) / "a.png", np.full((1, 2, 2), 37.2), scan)
        ...     np.asarray(Image.open(path)).tolist()
        [[37, 37], [37, 37]]
    """
    if array.shape != scan.array.shape:
        sizes = f"{list(array.shape)}, the scan's is {list(scan.array.shape)}"
        raise ConfigError(f"{Path(path).name}: the size is {sizes}; bring it to the scan's space first")
    if Path(path).suffix.lower() == ".png":
        return write_scan(path, array, value_range=(0, 255))
    without_geometry = scan.spatial_dims == 2 and np.array_equal(scan.affine, np.eye(4))  # pictures
    affine = None if without_geometry else scan.affine
    header = scan.header
    if header is not None and dtype is not None:
        header = header.copy()
        header.set_data_dtype(dtype)
    stored = _stored_type(array, scan) if dtype is None and header is None else dtype
    return write_scan(path, array, affine, dtype=np.float32 if stored is None else stored, header=header)


def _stored_type(array: NDArray[np.float32], scan: Scan) -> DTypeLike:
    # by the values: the type in the file says little where a slope is applied, or an export made floats of integers
    if not (np.equal(np.round(scan.array), scan.array).all() and np.isfinite(array).all()):
        return np.float32
    # Python's integers: in float32 the end of int32 is rounded up to a number that would wrap
    low = int(min(scan.array.min(), np.round(array.min())))
    high = int(max(scan.array.max(), np.round(array.max())))
    for dtype in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    return np.float32


def check_invertible(preprocessing: Callable[[Any], Any]) -> list[Any]:
    """The transforms of a preprocessing that :class:`NativeSpace` can undo; no scan is read for it.

    Raises:
        ConfigError: one cannot be undone, or the first is not `ReadScand`.
    """
    transforms = list(Compose(preprocessing).flatten().transforms)
    if not (transforms and isinstance(transforms[0], ReadScand)):
        raise ConfigError(
            "preprocessing: does not begin with ReadScand, which knows the scan's own space; put it first"
        )
    for transform in transforms[1:]:
        if not isinstance(transform, (InvertibleTransform, *_KEEP_PLACES)):
            raise ConfigError(
                f"preprocessing: {type(transform).__name__} cannot be undone, so no image can be brought back to the "
                "scan's space; use ToModelRanged for intensities, and transforms that MONAI can invert"
            )
    return transforms
