"""Write an image that was made from a DICOM scan as a new DICOM series of the same study."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.valuerep import format_number_as_ds

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.fingerprints import digest
from monai_diffae.data.formats import dicom
from monai_diffae.data.formats.dicom_pixels import is_inverted, lenient, write_dataset
from monai_diffae.data.formats.dicom_planes import Stack
from monai_diffae.data.formats.itk import LPS_TO_RAS
from monai_diffae.data.formats.scan import problem
from monai_diffae.errors import ConfigError

Pixels = NDArray[np.int16] | NDArray[np.uint16]

_WRITER = "MONAI_DIFFAE"
"""The files' ImplementationVersionName, which marks files that may be replaced."""

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


def write_series(
    path: str | os.PathLike[str],
    array: NDArray[np.float32],
    source: str | os.PathLike[str],
    *,
    description: str = "monai_diffae reconstruction",
    overwrite: bool = False,
) -> Path:
    r"""Write an image in the space of a DICOM scan as a new series of that scan's study.

    **The new files are as private as their source**: they belong to the same patient's study, so they contain the
    source's name, PatientID, dates and other tags. The UIDs of series and instances, the series number (1000 more),
    the description, ``DERIVED\SECONDARY`` and the description of the pixels are new. Private tags and overlays are
    omitted.

    The UIDs are hashes of the source's series UID, the description and the stored voxels. An archive therefore takes
    the same result written again as the same series, and another result as another series.

    Values are stored in 16 bits, with the source's slope and intercept if they fit, otherwise with a new slope. No
    value wraps around or is clipped. Each frame of an enhanced file becomes a file.

    Args:
        path: a folder for a volume, or a ``.dcm`` file for a 2D image. It appears only when it is complete.
        array: ``[1, X, Y, Z]`` or ``[1, H, W]`` in the source's units and size, as
            :func:`~monai_diffae.data.scans.read_scan` returns the source.
        source: the DICOM file, folder, or ``folder#series=UID`` that the image was made from.
        description: the SeriesDescription (its first 64 characters) and DerivationDescription.
        overwrite: replace earlier results of this function at ``path``.

    Returns:
        ``path``, which ``read_scan`` can read.

    Example:
        >>> import tempfile
        >>> from pydicom.data import get_testdata_file
        >>> from monai_diffae.data.scans import read_scan
        >>> source = get_testdata_file("MR_small.dcm", download=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_series(Path(folder) / "new.dcm", read_scan(source).array, source)
        ...     read_scan(path).array.shape
        (1, 64, 64)
    """
    path, source = Path(path), Path(source)
    files, stack = dicom.read_stack(source)
    _check_target(path, stack is not None, overwrite)
    with lenient():
        slices = _read_slices(source, files, stack)
        size = stack.sizes if stack is not None else (int(slices[0].Rows), int(slices[0].Columns))
        if array.shape != (1, *size) or not np.isfinite(array).all():
            raise ConfigError(
                f"{path.name}: the array {list(array.shape)} must be finite and have the source's size {[1, *size]}; "
                "bring it to the source's space"
            )
        planes = array if stack is None else array[0].transpose(2, 1, 0)
        storage = _choose_storage(float(array.min()), float(array.max()), slices)
        pixels = [storage.store(plane) for plane in planes]
        series = _series_uid(slices[0], description, storage, pixels)
        for k, dataset in enumerate(slices):
            _describe(dataset, series, k, description)
            _set_pixels(dataset, storage, pixels[k])
        if stack is None:
            return write_atomic(path, lambda file: write_dataset(file, slices[0], writer=_WRITER))
        return write_atomic(path, lambda folder: _save_all(slices, folder, path))


def _read_slices(path: Path, files: Sequence[Path], stack: Stack | None) -> list[Dataset]:
    """Read one data set without pixels per slice of a scan, and remove what describes the source's pixels."""
    order = [0] if stack is None else stack.nearest_planes()
    if len(files) == 1 < len(order):
        slices = _split_frames(path, _read_tags(files[0]), order)
    else:
        slices = [_read_tags(files[k]) for k in order]
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


def _read_tags(path: Path) -> Dataset:
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


@dataclass(frozen=True)
class _Storage:
    """How values are stored; ``new`` if slope and intercept are not the source's."""

    slope: float
    intercept: float
    signed: bool
    new: bool

    def store(self, plane: NDArray[np.float32]) -> Pixels:
        whole = np.rint((plane.astype(np.float64) - self.intercept) / self.slope)
        return whole.astype("<i2") if self.signed else whole.astype("<u2")


def _choose_storage(low: float, high: float, slices: list[Dataset]) -> _Storage:
    rescales = {(float(d.get("RescaleSlope") or 1), float(d.get("RescaleIntercept") or 0)) for d in slices}
    if len(rescales) == 1:
        ((slope, intercept),) = rescales
        ends = [round((value - intercept) / slope) for value in (low, high)]
        was_signed = bool(slices[0].PixelRepresentation)
        for signed in (was_signed, not was_signed):
            limits = np.iinfo(np.int16 if signed else np.uint16)
            if limits.min <= min(ends) and max(ends) <= limits.max:
                return _Storage(slope, intercept, signed, new=False)
    signed = low < 0
    steps = 32767 if signed else 65535
    slope = float(format_number_as_ds(max(-low, high) / steps)) or 1.0
    return _Storage(slope, 0.0, signed, new=True)


def _series_uid(first: Dataset, description: str, storage: _Storage, pixels: list[Pixels]) -> str:
    return uid.generate_uid(
        entropy_srcs=["monai_diffae", str(first.SeriesInstanceUID), description, digest(repr(storage), *pixels)]
    )


def _describe(dataset: Dataset, series: str, k: int, description: str) -> None:
    origin = Dataset()
    origin.ReferencedSOPClassUID, origin.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    dataset.SourceImageSequence = [origin]
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=[series, str(k)])
    dataset.SeriesInstanceUID = series
    dataset.SeriesNumber = int(dataset.get("SeriesNumber") or 0) + 1000
    dataset.InstanceNumber = k + 1
    kinds = np.atleast_1d(dataset.get("ImageType") or [])
    dataset.ImageType = ["DERIVED", "SECONDARY", *map(str, kinds[2:])]
    dataset.SeriesDescription = description[:64]
    dataset.DerivationDescription = description


def _set_pixels(dataset: Dataset, storage: _Storage, pixels: Pixels) -> None:
    if is_inverted(dataset):
        # read_scan inverts these values, and the window no longer fits
        dataset.PhotometricInterpretation = "MONOCHROME2"
        for keyword in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "PresentationLUTShape"):
            dataset.pop(keyword, None)
    if storage.new:
        dataset.RescaleSlope, dataset.RescaleIntercept = storage.slope, storage.intercept
        dataset.RescaleType = dataset.get("RescaleType") or "US"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(storage.signed)
    dataset.add_new("PixelData", "OW", pixels.tobytes())


def _save_all(slices: list[Dataset], folder: Path, old: Path) -> None:
    """Write all files or none: a series without its last slices would look complete."""
    try:
        folder.mkdir()
        for k, dataset in enumerate(slices):
            write_dataset(folder / f"{k + 1:04d}.dcm", dataset, writer=_WRITER)
        if old.exists():
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_target(path: Path, is_volume: bool, overwrite: bool) -> None:
    if is_volume == (path.suffix.lower() in dicom.SUFFIXES):
        kind = "a volume is written into a folder" if is_volume else "a 2D image is written as one file"
        raise ConfigError(f"{path.name}: {kind}; choose a name that ends {'otherwise' if is_volume else 'in .dcm'}")
    if not path.exists():
        return
    if not overwrite:
        raise ConfigError(f"{path.name}: already exists; choose another name, or set overwrite")
    if not all(_was_written_here(file) for file in (path.iterdir() if path.is_dir() else [path])):
        raise ConfigError(f"{path.name}: holds files that were not written by this package; choose another name")


def _was_written_here(path: Path) -> bool:
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
    except (InvalidDicomError, OSError):
        return False
    return bool(meta.get("ImplementationVersionName") == _WRITER)
