"""Whether a DICOM file holds all of its pixels: SimpleITK reads missing ones as zeros."""

from __future__ import annotations

import math
from pathlib import Path

import SimpleITK as sitk

from monai_diffae.data.formats.scan import problem

_TAG, _TAG_BIG_ENDIAN = b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def check_pixel_data(path: Path, reader: sitk.ImageFileReader) -> None:
    """Compare the length of the pixel data with the header's sizes.

    Args:
        path: the file.
        reader: has read the file's header.

    Raises:
        ScanError: the file ends before its pixels do, holds none, or holds them in a way that GDCM gets wrong.
    """
    data = path.read_bytes()
    if _DEFLATED in data[:1024]:
        return  # the whole data set is one zlib stream: the decoder itself notices
    expected = _expected_bytes(reader)
    starts = _find(data, _TAG)
    if any(_holds(data, at, expected) for at in starts):
        return
    if any(_holds(data, at, expected, "big") for at in _find(data, _TAG_BIG_ENDIAN)):
        if _allocated(reader) > 16:  # GDCM exchanges the bytes of 16 bits each
            raise problem(path, "its 32-bit big-endian values cannot be decoded", "export it as little endian")
        return
    wrong = "its pixel data end early" if starts else "it holds no pixel data"
    raise problem(path, wrong, "copy it again")


def _expected_bytes(reader: sitk.ImageFileReader) -> int:
    return (math.prod(reader.GetSize()[:3]) * _samples(reader) * _allocated(reader) + 7) // 8


def _allocated(reader: sitk.ImageFileReader) -> int:
    return int(reader.GetMetaData("0028|0100")) if reader.HasMetaDataKey("0028|0100") else 8


def _samples(reader: sitk.ImageFileReader) -> int:
    # not the components after decoding: a palette's indices become three of them
    return int(reader.GetMetaData("0028|0002")) if reader.HasMetaDataKey("0028|0002") else 1


def _find(data: bytes, tag: bytes) -> list[int]:
    found, at = [], data.find(tag)
    while at >= 0:
        found.append(at)
        at = data.find(tag, at + 4)
    return found


def _holds(data: bytes, at: int, expected: int, order: str = "little") -> bool:
    """Whether the element at ``at`` is pixel data of at least ``expected`` bytes, or a complete run of fragments."""
    explicit = data[at + 4 : at + 6] in (b"OW", b"OB", b"UN")
    start = at + (12 if explicit else 8)
    length = int.from_bytes(data[start - 4 : start], order)  # type: ignore[arg-type]
    if length != 0xFFFFFFFF:
        # chroma-subsampled colour (YBR_FULL_422) takes two thirds: what is declared must be there in any case
        return start + length <= len(data) and length >= expected * 2 // 3
    while data[start : start + 4] == _ITEM:
        start += 8 + int.from_bytes(data[start + 4 : start + 8], "little")
    return data[start : start + 4] == _END
