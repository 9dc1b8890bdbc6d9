"""Read scans with all checks, as a MONAI transform."""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_diffae.data.formats.scan import problem
from monai_diffae.data.scans import Axis, Scan, read_scan, slice_volume
from monai_diffae.errors import ConfigError


class ReadScand(MapTransform):
    """Reads the scan under each key with all checks of :func:`~monai_diffae.data.scans.read_scan`.

    A path becomes a MetaTensor float32 ``[C, *S]`` with its affine in mm (RAS+). The files of a list of paths become
    the channels of one image; they must have the same grid. If an item has ``"slice"``, that slice of the volume is
    read, oriented for display. The result's metadata contain no path. For a 2D image, MONAI's affine has only the
    spacing; the complete affine is ``meta["scan_affine"]``.

    Args:
        keys: the keys of the paths.
        spatial_dims: the dimensions of the model, 2 or 3.
        channels: the number of channels that the model takes for each key.
        axis: the axis for ``item["slice"]``: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        nonfinite: ``"error"``, or a value that replaces NaN and infinite voxels.
        allow_missing_keys: skip keys that an item does not have.

    Raises:
        ScanError: (on call) a scan cannot be used.

    Example:
        >>> import tempfile
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
        channels: int = 1,
        axis: Axis = "axial",
        nonfinite: Literal["error"] | float = "error",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if spatial_dims not in (2, 3):
            raise ConfigError(f"spatial_dims: {spatial_dims} is not 2 or 3")
        self.spatial_dims, self.channels, self.axis, self.nonfinite = spatial_dims, channels, axis, nonfinite

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path by its scan."""
        return {**data, **{key: as_tensor(scan) for key, scan in self.read(data).items()}}

    def read(self, data: Mapping[Any, Any]) -> dict[Hashable, Scan]:
        """Read the scan under each key."""
        scans = {}
        for key in self.key_iterator(dict(data)):
            paths = [data[key]] if isinstance(data[key], (str, os.PathLike)) else list(data[key])
            scans[key] = self._read(paths, data.get("slice"))
        return scans

    def _read(self, paths: Sequence[str], index: int | None) -> Scan:
        dims = self.spatial_dims if index is None or self.spatial_dims == 3 else None
        file_channels = self.channels if len(paths) == 1 else 1
        if index is None or self.spatial_dims == 3:
            scans = [read_scan(p, spatial_dims=dims, channels=file_channels, nonfinite=self.nonfinite) for p in paths]
        else:
            # a volume is read once for consecutive slices
            files = _read_volume(tuple(map(str, paths)), _modification_time(paths), file_channels, self.nonfinite)
            scans = [slice_volume(f, self.axis, int(index)) if f.spatial_dims == 3 else f for f in files]
        scan = _stacked(paths, scans)
        if len(scan.array) != self.channels:
            raise problem(
                paths[0], f"there are {len(paths)} files; expected {self.channels}", "give one file per channel"
            )
        return scan


ReadScanD = ReadScanDict = ReadScand


def as_tensor(scan: Scan) -> MetaTensor:
    """Convert a scan to a MetaTensor ``[C, *S]`` with its affine and without its path."""
    meta = {
        "scan_affine": torch.from_numpy(scan.affine),
        # MONAI's names, from which applications restore a result to the scan's grid
        "original_affine": torch.from_numpy(scan.affine),
        "spatial_shape": np.array(scan.array.shape[1:]),
    }
    return MetaTensor(torch.from_numpy(scan.array), affine=torch.from_numpy(_monai_affine(scan)), meta=meta)


@functools.lru_cache(maxsize=1)
def _read_volume(
    paths: tuple[str, ...], _modified: int, channels: int, nonfinite: Literal["error"] | float
) -> tuple[Scan, ...]:
    return tuple(read_scan(p, channels=channels, nonfinite=nonfinite) for p in paths)


def _modification_time(paths: Sequence[str]) -> int:
    return max((Path(p).stat().st_mtime_ns for p in paths if Path(p).exists()), default=0)


def _stacked(paths: Sequence[str], scans: Sequence[Scan]) -> Scan:
    first = scans[0]
    for path, other in zip(paths[1:], scans[1:], strict=True):
        if other.array.shape[1:] != first.array.shape[1:]:
            sizes = " x ".join(map(str, other.array.shape[1:]))
            expected = " x ".join(map(str, first.array.shape[1:]))
            raise problem(
                path, f"its size is {sizes}, but the first channel's is {expected}", "resample the channels to one grid"
            )
        if not np.allclose(other.affine, first.affine, atol=0.01):
            raise problem(path, "its affine differs from the first channel's", "resample the channels to one grid")
    return replace(first, array=np.concatenate([s.array for s in scans]), header=None) if len(scans) > 1 else first


def _monai_affine(scan: Scan) -> np.ndarray:
    """The affine for MONAI. MONAI uses its first two rows and columns for a 2D image, so there it has only spacings."""
    return scan.affine if scan.spatial_dims == 3 else np.diag([*scan.spacing_mm, 1.0, 1.0])
