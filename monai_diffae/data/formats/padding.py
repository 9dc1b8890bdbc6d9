"""Padding of DICOM images: voxels outside the field of view, which scanners fill with a value of their own.

A CT stores -2000, for example, far below the -1024 HU of air. Percentiles and windows that include it are wrong, so it
is replaced by the lowest measured value. Some files declare a value that tissue has, too. It cannot be told from the
tissue, so it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

_VALUE, _LIMIT, _SIGNED, _ALLOCATED = "0028|0120", "0028|0121", "0028|0103", "0028|0100"
_INTERCEPT, _SLOPE, _COLOURS = "0028|1052", "0028|1053", "0028|0004"


def without_padding(
    arrays: Sequence[NDArray[np.float32]],
    readers: Sequence[sitk.ImageFileReader],
    rescale: tuple[float, float] | None = None,
) -> list[NDArray[np.float32]]:
    """Replace the padding of a scan's files by the lowest value of all its other voxels.

    Only padding beyond the range of the other values is replaced.

    Args:
        arrays: the decoded files.
        readers: which have read their headers.
        rescale: slope and intercept from stored values to those of the arrays; None: those of each header.
    """
    masks = [_padding(array, reader, rescale) for array, reader in zip(arrays, readers, strict=True)]
    if not any(mask.any() for mask in masks):
        return list(arrays)
    measured = [array[~mask] for array, mask in zip(arrays, masks, strict=True) if not mask.all()]
    if not measured:
        return list(arrays)
    lowest, highest = min(each.min() for each in measured), max(each.max() for each in measured)
    return [
        np.where(mask & ((array < lowest) | (array > highest)), lowest, array)
        for array, mask in zip(arrays, masks, strict=True)
    ]


def _padding(
    array: NDArray[np.float32], reader: sitk.ImageFileReader, rescale: tuple[float, float] | None
) -> NDArray[np.bool_]:
    """A mask of the voxels that have a value that the header declares as padding."""
    value = _stored(reader, _VALUE)
    is_inverted = reader.HasMetaDataKey(_COLOURS) and reader.GetMetaData(_COLOURS).strip() == "MONOCHROME1"
    if value is None or is_inverted or len(array) != 1:  # GDCM inverts MONOCHROME1 while it decodes
        return np.zeros(array.shape, bool)
    limit = _stored(reader, _LIMIT)
    slope, intercept = rescale or rescaling(reader)
    ends = [slope * end + intercept for end in (value, value if limit is None else limit)]
    tolerance = abs(slope) / 2
    return (array > min(ends) - tolerance) & (array < max(ends) + tolerance)


def _stored(reader: sitk.ImageFileReader, tag: str) -> int | None:
    """A stored value. It has the sign of the pixels, but files without explicit types do not say so."""
    try:
        value, bits = int(reader.GetMetaData(tag)), int(reader.GetMetaData(_ALLOCATED))
        is_signed = int(reader.GetMetaData(_SIGNED)) == 1
    except (RuntimeError, ValueError):  # the tag is absent or empty
        return None
    value %= 1 << bits
    return value - (1 << bits) if is_signed and value >= 1 << (bits - 1) else value


def rescaling(reader: sitk.ImageFileReader) -> tuple[float, float]:
    """Slope and intercept from the stored values of a file to its values."""
    return _number(reader, _SLOPE, 1.0), _number(reader, _INTERCEPT, 0.0)


def _number(reader: sitk.ImageFileReader, tag: str, default: float) -> float:
    try:
        return float(reader.GetMetaData(tag))
    except (RuntimeError, ValueError):
        return default
