"""Check that a DICOM file contains all of its pixels, because SimpleITK reads missing ones as zeros."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import SimpleITK as sitk

from monai_diffae.data.formats.scan import problem

_TAG, _TAG_BIG_ENDIAN = b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def check_pixel_data(path: Path, reader: sitk.ImageFileReader) -> None:
    """Compare the length of the pixel data with the size in the header.

    Args:
        path: the file.
        reader: a reader that has read the file's header.

    Raises:
        ScanError: pixels are missing, or are stored in a way that GDCM decodes wrongly.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _check(path, data, reader)


def _check(path: Path, data: mmap.mmap, reader: sitk.ImageFileReader) -> None:
    if _DEFLATED in data[:1024]:
        return  # the whole data set is one zlib stream, whose decoder notices a missing end
    expected = _expected_bytes(reader)
    starts = _find(data, _TAG)
    if any(_is_complete(data, start, expected) for start in starts):
        return
    if any(_is_complete(data, start, expected, "big") for start in _find(data, _TAG_BIG_ENDIAN)):
        if _allocated(reader) > 16:  # GDCM swaps bytes in units of 16 bits
            raise problem(path, "its 32-bit big-endian values cannot be decoded", "export it as little endian")
        return
    wrong = "its pixel data end early" if starts else "it has no pixel data"
    raise problem(path, wrong, "copy it again")


def _expected_bytes(reader: sitk.ImageFileReader) -> int:
    return (math.prod(reader.GetSize()[:3]) * _samples(reader) * _allocated(reader) + 7) // 8


def _allocated(reader: sitk.ImageFileReader) -> int:
    return int(reader.GetMetaData("0028|0100")) if reader.HasMetaDataKey("0028|0100") else 8


def _samples(reader: sitk.ImageFileReader) -> int:
    # not the components after decoding, because the indices of a palette become three components
    return int(reader.GetMetaData("0028|0002")) if reader.HasMetaDataKey("0028|0002") else 1


def _find(data: mmap.mmap, tag: bytes) -> list[int]:
    positions, position = [], data.find(tag)
    while position >= 0:
        positions.append(position)
        position = data.find(tag, position + 4)
    return positions


def _is_complete(data: mmap.mmap, position: int, expected: int, order: str = "little") -> bool:
    """Whether the element at ``position`` has at least ``expected`` bytes of pixels, or complete fragments."""
    explicit = data[position + 4 : position + 6] in (b"OW", b"OB", b"UN")
    start = position + (12 if explicit else 8)
    length = int.from_bytes(data[start - 4 : start], order)  # type: ignore[arg-type]
    if length != 0xFFFFFFFF:
        # chroma-subsampled colour (YBR_FULL_422) takes two thirds of the bytes
        return start + length <= len(data) and length >= expected * 2 // 3
    while data[start : start + 4] == _ITEM:
        start += 8 + int.from_bytes(data[start + 4 : start + 8], "little")
    return data[start : start + 4] == _END
