"""The value that a probe learns from each label of the datastore: a class, or the volume of a structure.

MONAI Label's labels are label maps. A probe needs one value per image, which is one of these:

- the **class** that was given when the label was saved: ``params={"class": "pneumonia"}`` of ``PUT /datastore/label``;
- else the **volume** of the label map (its area for a 2D image): of all structures together, or of one structure.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from monai_diffae.data.formats import itk
from monai_diffae.data.scans import scan_suffix
from monai_diffae.errors import ConfigError, DiffAEError, ScanError

CLASS, VOLUME, AUTO = "class", "volume", "auto"


def label_targets(datastore: Datastore, ids: Sequence[str], target: str = AUTO) -> tuple[str, dict[str, Any]]:
    """The value of each labelled image.

    Args:
        datastore: the images and labels.
        ids: labelled images.
        target: ``class``; ``volume``: of all structures; the name or number of one structure: its volume; ``auto``:
            ``class`` if an image has one, else ``volume``.

    Returns:
        ``class`` or ``volume``, and the values by id: texts, or volumes in ml (areas in cm2). Images without a class,
        and those whose label cannot be read, are left out.

    Raises:
        ConfigError: no label has a structure of that name.
    """
    infos = {id: _label_info(datastore, id) for id in ids}
    classes = {id: str(info[CLASS]) for id, info in infos.items() if info.get(CLASS) not in (None, "")}
    if target == CLASS or (target == AUTO and classes):
        return CLASS, classes
    numbers = {id: None if target in (AUTO, VOLUME) else _structure(info, target) for id, info in infos.items()}
    if target not in (AUTO, VOLUME):
        numbers = {id: number for id, number in numbers.items() if number is not None}
        if infos and not numbers:
            raise ConfigError(
                f"target: no label has a structure {target[:40]!r}; use the name or number of a structure, or volume"
            )
    volumes: dict[str, float] = {}
    for id, number in numbers.items():
        sizes = _sizes_of_label(datastore, id)
        if sizes is not None:
            volumes[id] = sum(sizes.values()) if number is None else sizes.get(number, 0.0)
    return VOLUME, volumes


def structure_sizes(path: Path) -> dict[int, float]:
    """The size of each structure of a label map: volumes in ml, or areas in cm2 for a 2D image.

    Args:
        path: an image file whose values are the numbers of structures; 0 is background. Of several channels, a voxel is
            in structure 1 if any is above 0.

    Raises:
        RuntimeError: the file cannot be read.
    """
    state = path.stat()
    return dict(_sizes_in_state(str(path), state.st_mtime_ns, state.st_size))


def check_label_file(path: Path) -> None:
    """Check that a label can be read.

    Raises:
        ConfigError: it is not an image, or is damaged.
    """
    try:
        if scan_suffix(path) in (".nrrd", ".mha", ".mhd"):
            itk.check_data_files(path)
        with itk.silent_stderr():
            sitk.ReadImage(str(path))
    except (RuntimeError, ScanError) as error:
        raise ConfigError("label: cannot be read as an image; save it again as NIfTI, NRRD or PNG") from error


@functools.lru_cache(maxsize=10_000)
def _sizes_in_state(path: str, _changed: int, _size: int) -> tuple[tuple[int, float], ...]:
    image = sitk.ReadImage(path)
    values = np.nan_to_num(np.asarray(sitk.GetArrayViewFromImage(image)), nan=0.0, posinf=0.0, neginf=0.0)
    if path.lower().endswith(".png") and image.GetNumberOfComponentsPerPixel() in (2, 4):
        values = values[..., :-1]  # transparency is not a structure
    if image.GetNumberOfComponentsPerPixel() > 1:
        values = np.asarray((values > 0).any(axis=-1))
    numbers, counts = np.unique(np.round(values).astype(np.int64), return_counts=True)
    voxel = math.prod(image.GetSpacing()) / 10.0 ** image.GetDimension()  # mm to cm
    return tuple((int(n), float(count * voxel)) for n, count in zip(numbers, counts, strict=True) if n != 0)


def _sizes_of_label(datastore: Datastore, id: str) -> dict[int, float] | None:
    try:
        return structure_sizes(Path(datastore.get_label_uri(id, DefaultLabelTag.FINAL)))
    except (OSError, RuntimeError, DiffAEError):  # a damaged label, which the annotator can save again
        return None


def _label_info(datastore: Datastore, id: str) -> Mapping[str, Any]:
    try:
        return datastore.get_label_info(id, DefaultLabelTag.FINAL) or {}
    except DiffAEError:  # a DICOM-SEG that another program has stored
        return {}


def _structure(info: Mapping[str, Any], target: str) -> int | None:
    """The number of a structure: 3D Slicer and OHIF send names and numbers as ``label_info``."""
    if target.isdecimal():
        return int(target)
    entries = info.get("label_info")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and entry.get("name") == target and str(entry.get("idx", "")).isdecimal():
            return int(entry["idx"])
    return None
