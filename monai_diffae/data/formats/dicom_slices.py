"""The tags of a DICOM scan, slice by slice, as a new series takes them over."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from monai_diffae.data.formats.itk import LPS_TO_RAS
from monai_diffae.data.formats.planes import Stack
from monai_diffae.data.formats.scan import problem

_SHARED, _FRAMES = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_OF_MANY_FRAMES = (_SHARED, _FRAMES, "NumberOfFrames", "DimensionOrganizationSequence", "DimensionIndexSequence")
_CLASS_OF_ONE = {
    uid.EnhancedMRImageStorage: uid.MRImageStorage,
    uid.EnhancedCTImageStorage: uid.CTImageStorage,
    uid.EnhancedPETImageStorage: uid.PositronEmissionTomographyImageStorage,
}
_OF_THE_PIXELS = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "VOILUTSequence", "IconImageSequence",
    "MACParametersSequence", "DigitalSignaturesSequence", "InstanceCreationDate", "InstanceCreationTime",
)  # fmt: skip
_CURVES_AND_OVERLAYS = (0x50, 0x60)  # the high bytes of their groups


def read_slices(path: Path, files: Sequence[Path], stack: Stack | None) -> list[Dataset]:
    """A data set without pixels for each slice of a scan.

    What speaks of the source's pixels (overlays, icon, look-up tables, signatures) is left out, and so are private
    tags. Frames of enhanced files become slices of the ordinary kind.

    Args:
        path: the scan, for messages.
        files: its files.
        stack: how they make a volume, both from :func:`~monai_diffae.data.formats.dicom.read_stack`.

    Raises:
        ScanError: the scan has colours, or its frames are of a kind that has no single slices.
    """
    order = [0] if stack is None else stack.order
    if len(files) < len(order):
        slices = _split_frames(path, _read(files[0]), order)
    else:
        slices = [_read(files[k]) for k in order]
    for k, dataset in enumerate(slices):
        if not str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME"):
            raise problem(path, "it has colours, which cannot be written as DICOM", "write PNG or NIfTI")
        _strip(dataset)
        if stack is not None and stack.lean.any():
            corner = LPS_TO_RAS @ stack.affine @ [0, 0, k, 1]
            dataset.ImagePositionPatient = [format_number_as_ds(float(v)) for v in corner[:3]]
            dataset.pop("GantryDetectorTilt", None)
    return slices


def _read(path: Path) -> Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True, force=True)


def _split_frames(path: Path, dataset: Dataset, order: list[int]) -> list[Dataset]:
    kind = _CLASS_OF_ONE.get(dataset.SOPClassUID)
    if kind is None:
        name = uid.UID(dataset.SOPClassUID).name
        raise problem(path, f"frames of {name} cannot be written as DICOM slices", "write NIfTI")
    shared, frames = dataset.get(_SHARED) or [], dataset[_FRAMES].value
    dataset.SOPClassUID = kind
    for keyword in _OF_MANY_FRAMES:
        dataset.pop(keyword, None)
    slices = []
    for k in order:
        single = copy.deepcopy(dataset)
        for group in (*shared, frames[k]):
            for macro in group:
                if macro.VR == "SQ" and macro.value and macro.keyword != "FrameContentSequence":
                    single.update(copy.deepcopy(macro.value[0]))
        slices.append(single)
    return slices


def _strip(dataset: Dataset) -> None:
    dataset.remove_private_tags()
    for keyword in _OF_THE_PIXELS:
        dataset.pop(keyword, None)
    for tag in [tag for tag in dataset.keys() if tag.group >> 8 in _CURVES_AND_OVERLAYS]:  # noqa: SIM118
        del dataset[tag]
