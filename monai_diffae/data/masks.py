"""Masks: label maps on the grid of their scan, and the labels of cases that follow from them."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.cases import Case, Label
from monai_diffae.data.formats.axes import Axis, flattened, slice_volume
from monai_diffae.data.formats.scan import warn_once
from monai_diffae.data.progress import track
from monai_diffae.data.scan_states import file_state
from monai_diffae.data.scans import Scan, on_grid, read_header, read_labels
from monai_diffae.errors import ScanError
from monai_diffae.policies import OtherGrids, PathLike

logger = logging.getLogger(__name__)

_MOST_CLASSES = 32  # that get labels of their own
_ALL = 0  # stands for all classes together


def read_mask(path: PathLike, image: PathLike, other_grids: OtherGrids = "resample") -> Scan:
    """Read the mask of an image ``[1, *S]`` on the image's grid, by the nearest label.

    Raises:
        ScanError: it is no label map, lies outside of the image, or has another grid and ``other_grids`` is ``refuse``.
    """
    return _read_mask(Path(path), Path(image), other_grids, file_state([path, image]))


@lru_cache(maxsize=1)  # slices of a volume follow each other
def _read_mask(path: Path, image: Path, other_grids: OtherGrids, _state: str) -> Scan:
    header = read_header(image)
    scan = flattened(Scan(np.broadcast_to(np.float32(0), (1, *header.shape)), header.affine))
    return replace(scan, array=on_grid(path, read_labels(path), scan, other_grids, nearest=True))


def case_mask(case: Case, axis: Axis = "axial") -> NDArray[np.bool_] | None:
    """The mask of a case on the grid of its scan, or of its slice along an axis; None if it has none that can be used.

    The array is bool ``[*native S]``; a volume with one slice is 2D. Why a mask cannot be used is logged.
    """
    mask = _own_mask(case, axis)
    return None if mask is None else mask.array[0] > 0


def with_mask_labels(cases: Sequence[Case], axis: Axis = "axial") -> list[Case]:
    """The cases with labels from their masks: presence and size of all classes together, and of each if there are more.

    Volumes have ``mask_present`` (0 or 1) and ``mask_ml``; images and slices ``mask_present`` and ``mask_cm2``, without
    a known pixel size ``mask_share``, the share of the image. With several classes, ``mask_1_ml`` and so on follow. A
    mask that is missing or cannot be read gives missing labels; the latter is logged.
    """
    if not any(case.mask for case in cases):
        return list(cases)
    found = [_sizes(case, axis) for case in track(cases, "reading masks")]
    classes = sorted({label for _, sizes in filter(None, found) for label in sizes} - {_ALL})
    if len(classes) > _MOST_CLASSES:
        logger.warning("the masks have %d classes, so only all of them together become labels", len(classes))
    named = {_ALL: "mask"} | ({k: f"mask_{k}" for k in classes} if 1 < len(classes) <= _MOST_CLASSES else {})
    units = {unit for unit, _ in filter(None, found)}
    labelled = []
    for case, each in zip(cases, found, strict=True):
        labels: dict[str, Label] = {}
        for label, name in named.items():
            size = each[1].get(label, 0.0) if each else None
            labels[f"{name}_present"] = None if size is None else int(size > 0)
            labels |= {f"{name}_{unit}": size if each and each[0] == unit else None for unit in sorted(units)}
        labelled.append(replace(case, labels={**case.labels, **labels}))
    return labelled


def has_mask(case: Case, axis: Axis = "axial") -> bool:
    """Whether the mask of a case, or of its slice, can be read and is not empty."""
    found = _sizes(case, axis)
    return found is not None and found[1][_ALL] > 0


def _own_mask(case: Case, axis: Axis) -> Scan | None:
    """The mask of a case, or of its slice; None, and a warning, if it cannot be used."""
    if case.mask is None:
        return None
    try:
        mask = read_mask(case.mask, case.first_file)
    except ScanError as error:
        warn_once(case.mask, str(error).partition(": ")[2])
        return None
    if case.slice_index is not None and mask.spatial_dims == 3:
        mask = slice_volume(mask, axis, case.slice_index)
    return mask


def _sizes(case: Case, axis: Axis) -> tuple[str, dict[int, float]] | None:
    """The unit and the size of each class of a case's mask, and of all together; None if there is no usable mask."""
    mask = _own_mask(case, axis)
    if mask is None:
        return None
    unit, voxels = {3: ("ml", 1000), 2: ("cm2", 100)}[mask.spatial_dims]
    if mask.lacks_geometry:
        unit, voxels = "share", mask.array.size
    size = float(np.prod(mask.spacing_mm)) / voxels
    classes, counts = np.unique(mask.array[mask.array > 0].astype(int), return_counts=True)
    sizes = dict(zip(classes.tolist(), (counts * size).tolist(), strict=True))
    return unit, {_ALL: sum(sizes.values()), **sizes}
