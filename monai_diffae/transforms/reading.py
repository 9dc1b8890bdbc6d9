"""Read scans with all checks, as a MONAI transform."""

import functools
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple_rep
from numpy.typing import NDArray

from monai_diffae.data.fingerprints import split_channel
from monai_diffae.data.formats.axes import Axis, slice_volume
from monai_diffae.data.formats.itk import LPS_TO_RAS
from monai_diffae.data.formats.scan import Floats
from monai_diffae.data.masks import read_mask
from monai_diffae.data.scan_states import file_state
from monai_diffae.data.scans import Scan, ScanNeeds, check_colour, on_grid, one_channel, read_scan, scan_of_array
from monai_diffae.errors import ScanError, counted, problem
from monai_diffae.policies import Colour, Doubtful, OtherGrids, Uneven, check_choice

Item = dict[Any, Any]
"""An item of MONAI's dictionary transforms."""


class ReadScand(MapTransform):
    """Reads the scan under each key with all checks of :func:`~monai_diffae.data.scans.read_scan`.

    A path becomes a MetaTensor float32 ``[C, *S]`` with its affine in mm (RAS+) and without its path. The files of a
    list become the channels of one image, on the grid of the first one; an item's ``"mask"`` becomes a label map on
    this grid. An image in memory passes the same checks: an
    array ``[C, *S]``, a MetaTensor, or a :class:`~monai_diffae.data.scans.Scan`. A 2D image has rows first (MONAI's own
    readers put columns first). If an item has ``"slice"``, that slice of the volume is read, oriented for display. For
    a 2D image, MONAI's affine has only the spacing; the complete affine is ``meta["scan_affine"]``.

    Args:
        keys: the keys of the paths or images.
        spatial_dims: the dimensions of the model, 2 or 3.
        channels: the number of channels that the model takes for each key, or one number per key.
        axis: the axis for ``item["slice"]``: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        nonfinite: ``"error"``, or a value that replaces NaN and infinite voxels.
        colour: ``refuse`` colour images if the model takes one channel; convert them to ``grey``; or ``rgb``: give grey
            images three channels. See :func:`~monai_diffae.data.scans.read_scan`.
        uneven: ``resample`` DICOM series whose slices are unevenly spaced, or ``refuse`` them.
        doubtful: ``warn`` of scans that may not be what was measured, or ``refuse`` them. See
            :func:`~monai_diffae.data.scans.read_scan`.
        other_grids: ``resample`` channels on other grids to that of the first one, linearly, or ``refuse`` them.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from monai_diffae.data.scans import write_scan
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_scan(Path(folder) / "a.nii.gz", np.arange(24.0).reshape(1, 2, 3, 4))
        ...     ReadScand("image", spatial_dims=2, channels=1)({"image": str(path), "slice": 3})["image"].shape
        torch.Size([1, 3, 2])
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int,
        channels: int | Sequence[int] = 1,
        axis: Axis = "axial",
        nonfinite: Literal["error"] | float = "error",
        colour: Colour = "refuse",
        uneven: Uneven = "resample",
        doubtful: Doubtful = "warn",
        other_grids: OtherGrids = "resample",
    ) -> None:
        super().__init__(keys)
        self.channels = dict(zip(self.keys, ensure_tuple_rep(channels, len(self.keys)), strict=True))
        self.needs = ScanNeeds(spatial_dims, None, nonfinite, colour, uneven, doubtful)
        check_choice("other_grids", other_grids, OtherGrids)
        check_colour(colour, self.channels[self.keys[0]])
        self.spatial_dims, self.axis, self.other_grids = spatial_dims, axis, other_grids

    def __call__(self, data: Item) -> Item:
        """Replace each path by its scan."""
        return {**data, **{key: as_tensor(scan) for key, scan in self.read(data).items()}}

    def read(self, data: Mapping[Any, Any]) -> dict[Hashable, Scan]:
        """Read the scan under each key."""
        index = data.get("slice") if self.spatial_dims == 2 else None
        scans = {key: self._read(images, key, self.needs, index) for key, images in self._images(data)}
        return scans | self._mask(data, index)

    def read_whole(self, data: Mapping[Any, Any]) -> dict[Hashable, Scan]:
        """Read the scan under each key; volumes stay volumes, whatever the dimensions of the model."""
        needs = replace(self.needs, spatial_dims=None, flatten=False)
        is_kept = data.get("slice") is not None
        scans = {key: self._read(images, key, needs, is_kept=is_kept) for key, images in self._images(data)}
        return scans | self._mask(data, None)

    def _mask(self, data: Mapping[Any, Any], index: int | None) -> dict[Hashable, Scan]:
        """The mask of an item that has one, on the grid of its first image."""
        mask = data.get("mask")
        if mask is None or isinstance(mask, Scan):
            return {} if mask is None else {"mask": mask}
        first = next(self._images(data))[1][0]
        scan = read_mask(mask, first, self.other_grids) if _is_path(mask) else _scan(mask, "mask", ScanNeeds())
        return {"mask": slice_volume(scan, self.axis, index) if index is not None and scan.spatial_dims == 3 else scan}

    def _images(self, data: Mapping[Any, Any]) -> Iterator[tuple[str, list[Any]]]:
        """Each key with the list of its images, which are the channels of one image if there are several."""
        for key in self.key_iterator(dict(data)):
            images = list(data[key]) if isinstance(data[key], (list, tuple)) else [data[key]]
            if not images:
                raise ScanError(f"{key}: the list of files is empty; give one file per channel")
            yield str(key), images

    def _read(
        self, images: Sequence[Any], key: str, needs: ScanNeeds, index: int | None = None, is_kept: bool = False
    ) -> Scan:
        """Read all channels of an image, or of the slice ``index`` of a volume, which is kept for the next slice."""
        channels = self.channels[key]
        needs = replace(needs, channels=channels if len(images) == 1 else 1)
        if index is not None:
            needs = replace(needs, spatial_dims=None)
        if len(images) not in (1, channels):
            wrong = f"the case has {counted(len(images), 'sequence')}, but the model takes {channels}"
            raise problem(images[0] if _is_path(images[0]) else key, wrong, "choose them with sequences")
        if not all(map(_is_path, images)):
            scan = _stacked([key] * len(images), [_scan(image, key, needs) for image in images], self.other_grids)
        elif index is not None or is_kept:  # read once for consecutive slices
            paths = tuple(map(str, images))
            scan = _read_volume(paths, file_state(paths), needs, self.other_grids)
        else:
            scan = _read_channels(list(map(str, images)), needs, self.other_grids)
        return slice_volume(scan, self.axis, int(index)) if index is not None and scan.spatial_dims == 3 else scan


def _is_path(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike))


def _scan(image: Any, key: str, needs: ScanNeeds) -> Scan:
    """Read an image, or check one in memory."""
    if _is_path(image):
        return read_scan(image, needs)
    array, affine = _array_in_memory(image, key)
    scan = scan_of_array(array, affine, key, needs)
    if isinstance(image, Scan) and scan.array.shape == array.shape:
        return replace(image, array=scan.array)
    return scan


def as_tensor(scan: Scan) -> MetaTensor:
    """Convert a scan to a MetaTensor ``[C, *S]`` with its affine and without its path."""
    # MONAI uses the first two rows and columns for a 2D image, so there they have only spacings
    affine = scan.affine if scan.spatial_dims == 3 else np.diag([*scan.spacing_mm, 1.0, 1.0])
    meta = {
        "scan_affine": torch.from_numpy(scan.affine),
        # MONAI's names, from which applications restore a result to the scan's grid
        "original_affine": torch.from_numpy(scan.affine),
        "spatial_shape": np.array(scan.array.shape[1:]),
    }
    return MetaTensor(torch.from_numpy(scan.array), affine=torch.from_numpy(affine), meta=meta)


@functools.lru_cache(maxsize=1)
def _read_volume(paths: tuple[str, ...], _state: str, needs: ScanNeeds, other_grids: OtherGrids) -> Scan:
    return _read_channels(paths, needs, other_grids)


def _read_channels(paths: Sequence[str], needs: ScanNeeds, other_grids: OtherGrids) -> Scan:
    """Read files as channels of one scan. A file of which several channels are needed is read once."""
    places = [split_channel(path) for path in paths]
    several = [file for file, count in Counter(file for file, _ in places).items() if count > 1]
    whole = {file: read_scan(file, replace(needs, channels=None)) for file in several}
    scans = [
        one_channel(whole[file], file, number or 0) if file in whole else read_scan(path, needs)
        for path, (file, number) in zip(paths, places, strict=True)
    ]
    return _stacked(paths, scans, other_grids)


def _stacked(paths: Sequence[str], scans: Sequence[Scan], other_grids: OtherGrids) -> Scan:
    first, *others = scans
    arrays = [first.array, *(on_grid(p, s, first, other_grids) for p, s in zip(paths[1:], others, strict=True))]
    return replace(first, array=np.concatenate(arrays), header=None, has_8_bits=False) if others else first


def _array_in_memory(image: Any, key: str) -> tuple[NDArray[Any], Floats | None]:
    """The values of an array, tensor or scan, and its affine if it has one."""
    if isinstance(image, Scan):
        return image.array, image.affine
    if isinstance(image, torch.Tensor):
        tensor = image.as_tensor() if isinstance(image, MetaTensor) else image
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # numpy has no bfloat16
        return tensor.detach().cpu().numpy(), _affine_in_memory(image) if isinstance(image, MetaTensor) else None
    if isinstance(image, np.ndarray):
        return image, None
    kind = type(image).__name__
    raise ScanError(f"{key}: it is of type {kind}; give a path, a list of paths, an array or a MetaTensor [C, *S]")


def _affine_in_memory(image: MetaTensor) -> Floats:
    """The affine (RAS+) of a MetaTensor that this class, or one of MONAI's readers, has made."""
    if image.ndim == 3 and "scan_affine" in image.meta and not image.applied_operations:
        return np.asarray(image.meta["scan_affine"], np.float64)
    affine = np.asarray(image.affine, np.float64)
    if affine.shape == (3, 3):  # of a 2D image: rows, columns, position
        affine = np.insert(np.insert(affine, 2, 0.0, axis=0), 2, (0.0, 0.0, 1.0, 0.0), axis=1)
    is_lps = str(image.meta.get(MetaKeys.SPACE, SpaceKeys.RAS)).upper().endswith(SpaceKeys.LPS)
    return LPS_TO_RAS @ affine if is_lps and affine.shape == (4, 4) else affine
