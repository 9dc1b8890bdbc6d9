"""The tags of a DICOM scan's slices, for a new series that is derived from it."""

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
_MULTI_FRAME_TAGS = (_SHARED, _FRAMES, "NumberOfFrames", "DimensionOrganizationSequence", "DimensionIndexSequence")
_SINGLE_FRAME_CLASS = {
    uid.EnhancedMRImageStorage: uid.MRImageStorage,
    uid.EnhancedCTImageStorage: uid.CTImageStorage,
    uid.EnhancedPETImageStorage: uid.PositronEmissionTomographyImageStorage,
}
_PIXEL_TAGS = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "VOILUTSequence", "IconImageSequence",
    "MACParametersSequence", "DigitalSignaturesSequence", "InstanceCreationDate", "InstanceCreationTime",
)  # fmt: skip
_CURVES_AND_OVERLAYS = (0x50, 0x60)  # the high bytes of their groups


def read_slices(path: Path, files: Sequence[Path], stack: Stack | None) -> list[Dataset]:
    """Read one data set without pixels per slice of a scan.

    Private tags and everything that describes the source's pixels (overlays, icon, look-up tables, signatures) are
    removed. Each frame of an enhanced file becomes an ordinary slice.

    Args:
        path: the scan, for messages.
        files: its files, from :func:`~monai_diffae.data.formats.dicom.read_stack`.
        stack: how they form a volume, from the same function.

    Raises:
        ScanError: the scan is a colour image, or its frames have no counterpart as single slices.
    """
    order = [0] if stack is None else stack.nearest_planes()
    if len(files) == 1 < len(order):
        slices = _split_frames(path, _read(files[0]), order)
    else:
        slices = [_read(files[k]) for k in order]
    for k, dataset in enumerate(slices):
        if not str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME"):
            raise problem(path, "colour images cannot be written as DICOM", "write PNG or NIfTI")
        _strip(dataset)
        if stack is not None and (stack.lean.any() or not stack.is_even):
            corner = LPS_TO_RAS @ stack.affine @ [0, 0, k, 1]
            dataset.ImagePositionPatient = [format_number_as_ds(float(v)) for v in corner[:3]]
            for keyword in ("GantryDetectorTilt", "SpacingBetweenSlices"):
                dataset.pop(keyword, None)
    return slices


def _read(path: Path) -> Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True, force=True)


def _split_frames(path: Path, dataset: Dataset, order: list[int]) -> list[Dataset]:
    kind = _SINGLE_FRAME_CLASS.get(dataset.SOPClassUID)
    if kind is None:
        name = uid.UID(dataset.SOPClassUID).name
        raise problem(path, f"frames of {name} cannot be written as DICOM slices", "write NIfTI")
    shared, frames = dataset.get(_SHARED) or [], dataset[_FRAMES].value
    dataset.SOPClassUID = kind
    for keyword in _MULTI_FRAME_TAGS:
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
    for keyword in _PIXEL_TAGS:
        dataset.pop(keyword, None)
    for tag in [tag for tag in dataset.keys() if tag.group >> 8 in _CURVES_AND_OVERLAYS]:  # noqa: SIM118
        del dataset[tag]
