"""The tags and pixels of one DICOM file, read by pydicom; GDCM (in SimpleITK) decodes what it cannot by itself.

GDCM trusts the lengths in a file (one flipped bit made it allocate 23 GB), and takes missing pixels for zeros. It gets
a copy of the pixels that pydicom has written.
"""

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import uid
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from monai_diffae.data.formats import itk
from monai_diffae.data.formats.scan import Floats, Voxels, as_float32, check_regular
from monai_diffae.errors import problem

Mask = NDArray[np.bool_] | None

logging.getLogger("pydicom").setLevel(logging.ERROR)

_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
_PALETTE = [f"{c}PaletteColorLookupTable{part}" for c in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")]
_PIXEL_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PresentationLUTShape",
    "PixelData",
    *_PALETTE,
]


@contextmanager
def lenient() -> Iterator[None]:
    """Let pydicom accept values that break the standard, without a word: archives are full of them."""
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_tags(path: Path, keywords: Sequence[str]) -> Dataset:
    """Read some of a file's tags, up to the last of them, and check that it is an image."""
    check_regular(path)
    tags: list[BaseTag | int] = [*map(Tag, keywords)]
    last = max(tags)
    try:
        with lenient(), open(path, "rb") as stream:
            dataset = read_partial(stream, lambda tag, *_: tag > last, force=True, specific_tags=tags)
            if "Columns" not in dataset:  # tags are not in order
                stream.seek(0)
                dataset = pydicom.dcmread(
                    stream, force=True, stop_before_pixels="PixelData" not in keywords, specific_tags=tags
                )
            for keyword in ("Rows", "Columns"):  # all images have them
                int(dataset[keyword].value)
    except OSError:
        raise
    except Exception as error:  # random bytes can fail anywhere in pydicom
        raise problem(path, "it is damaged, or no DICOM image", "copy or export it again") from error
    return dataset


def write_dataset(path: Path, dataset: Dataset, syntax: str = uid.ExplicitVRLittleEndian, writer: str = "") -> None:
    """Write a file; ``writer`` is its ImplementationVersionName."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = uid.UID(syntax)
    if writer:
        meta.ImplementationVersionName = writer
    dataset.file_meta, dataset.preamble = meta, bytes(128)
    if int(pydicom.__version__.partition(".")[0]) >= 3:
        pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)
    else:  # MONAI Label 0.8 needs pydicom 2
        dataset.is_implicit_VR, dataset.is_little_endian = False, True
        pydicom.dcmwrite(path, dataset, write_like_original=False)


def decode(path: Path, rescales: Floats) -> tuple[Voxels, Mask]:
    """Decode a file to ``[C, X, Y, frames]``, white high, by the slope and intercept of each frame; and its padding."""
    with lenient():
        dataset = read_tags(path, _PIXEL_TAGS)
        stored = _stored_values(path, dataset)
        padding = _padding(stored, dataset)
        if is_inverted(dataset):
            stored = ~stored if int(dataset.PixelRepresentation) else (1 << int(dataset.BitsStored)) - 1 - stored
    array = np.empty(stored.shape, np.float32)
    for values, frame, (slope, intercept) in zip(array, stored, rescales, strict=True):
        values[...] = as_float32(path, frame, None if (slope, intercept) == (1, 0) else (slope, intercept))
    return array.transpose(3, 2, 1, 0), None if padding is None else padding.transpose(3, 2, 1, 0)


def without_padding(arrays: list[Voxels], masks: Sequence[Mask]) -> list[Voxels]:
    """Replace padding outside the range of measured values, as -2000 is far below air, by the lowest of them."""
    pairs = [*zip(arrays, masks, strict=True)]
    measured = [array if mask is None else array[~mask] for array, mask in pairs if mask is None or not mask.all()]
    if not measured or all(mask is None for mask in masks):
        return arrays
    low, high = min(each.min() for each in measured), max(each.max() for each in measured)
    return [a if mask is None else np.where(mask & ((a < low) | (a > high)), low, a) for a, mask in pairs]


def _stored_values(path: Path, dataset: Dataset) -> NDArray[np.integer]:
    """The stored numbers ``[frames, rows, columns, C]``."""
    data = dataset.get("PixelData")
    if not data:
        raise problem(path, "it has no pixel data, or they end early", "copy it again")
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not syntax and (dataset.file_meta or not dataset.read_little_endian):
        raise problem(path, "it does not say how it is encoded (TransferSyntaxUID)", "copy or export it again")
    syntax = uid.UID(syntax or uid.ImplicitVRLittleEndian)
    if syntax in _NATIVE:
        expected = math.ceil(dataset.Rows * dataset.Columns * frames * samples * dataset.BitsAllocated / 8)
        # chroma-subsampled colour takes two thirds of the bytes
        if len(data) < (expected * 2 // 3 if "422" in dataset.PhotometricInterpretation else expected):
            raise problem(path, f"its pixel data end early ({len(data)} of {expected} bytes)", "copy it again")
    # GDCM takes the bytes of RLE colours of 16 bits for each other's
    if syntax in (*_NATIVE, uid.RLELossless) and (is_grey(dataset) or dataset.PhotometricInterpretation == "RGB"):
        dataset.file_meta.TransferSyntaxUID = syntax
        return _low_bits(path, dataset.pixel_array, dataset).reshape(frames, dataset.Rows, dataset.Columns, -1)
    if syntax == uid.ExplicitVRBigEndian:
        raise problem(path, "colours in a big-endian file cannot be decoded", "export it as little endian")
    pixels = sitk.GetArrayFromImage(_decode_with_gdcm(path, dataset, syntax))
    return pixels.reshape(frames, dataset.Rows, dataset.Columns, -1)


def _low_bits(path: Path, pixels: NDArray[np.integer], dataset: Dataset) -> NDArray[np.integer]:
    """The stored bits with their sign, without overlays in the bits beside them."""
    unused = dataset.BitsAllocated - dataset.BitsStored
    if unused < 1:
        return pixels
    if dataset.HighBit != dataset.BitsStored - 1:  # some writers mean the low bits, others the high ones
        wrong = f"it says that {dataset.BitsStored} bits are stored up to bit {dataset.HighBit}, a contradiction"
        raise problem(path, wrong, "export it again")
    return (pixels << unused) >> unused


def _decode_with_gdcm(path: Path, dataset: Dataset, syntax: uid.UID) -> sitk.Image:
    if is_grey(dataset):
        dataset.PhotometricInterpretation = "MONOCHROME2"  # GDCM would invert the other
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "scan.dcm"
        write_dataset(copy, dataset, syntax if syntax not in _NATIVE else uid.ExplicitVRLittleEndian)
        try:
            with itk.silent_stderr():
                return sitk.ReadImage(str(copy))
        except RuntimeError as error:
            wrong = f"its pixels ({syntax.name}) cannot be decoded"
            raise problem(path, wrong, "export it uncompressed") from error


def is_grey(dataset: Dataset) -> bool:
    """Whether its pixels are grey values, not colours."""
    return str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME")


def is_inverted(dataset: Dataset) -> bool:
    """Whether small values are shown white (DICOM PS3.3 C.11.6.1.2)."""
    colours, shape = dataset.PhotometricInterpretation, dataset.get("PresentationLUTShape")
    return bool(colours == "MONOCHROME1" or (colours == "MONOCHROME2" and shape == "INVERSE"))


def _padding(stored: NDArray[np.integer], dataset: Dataset) -> Mask:
    value, limit = (_stored_number(dataset, f"PixelPadding{name}") for name in ("Value", "RangeLimit"))
    if value is None or dataset.PhotometricInterpretation != "MONOCHROME2":
        return None
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _stored_number(dataset: Dataset, keyword: str) -> int | None:
    """A stored value. It has the sign of the pixels, but files without explicit types do not say so."""
    value = dataset.get(keyword)
    if not isinstance(value, (int, bytes)) or value == b"":
        return None
    bits = int(dataset.BitsAllocated)
    number = (int.from_bytes(value, "little") if isinstance(value, bytes) else value) % (1 << bits)
    return number - (1 << bits) if int(dataset.PixelRepresentation) and number >= 1 << (bits - 1) else number
