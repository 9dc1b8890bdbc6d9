"""Write an array with its geometry as NIfTI, NRRD or PNG, or as a new DICOM series of its source's study."""

import copy
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike, DTypeLike, NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.valuerep import format_number_as_ds

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.fingerprints import digest
from monai_diffae.data.formats import dicom, itk
from monai_diffae.data.formats.dicom_pixels import is_grey, is_inverted, lenient, write_dataset
from monai_diffae.data.formats.dicom_planes import FRAMES, SHARED, Stack
from monai_diffae.data.formats.itk import LPS_TO_RAS
from monai_diffae.data.formats.scan import Voxels
from monai_diffae.errors import ConfigError, counted, problem
from monai_diffae.policies import PathLike, Range

logger = logging.getLogger(__name__)

INTEGERS = (np.uint8, np.int16, np.uint16, np.int32)

SYNTHETIC = "synthetic, monai_diffae"
"""The description of an image that a model decoded."""

# The affine for a 2D image without geometry: rows run to posterior, columns to the patient's left.
_DISPLAYED = np.array([[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_scan(
    path: PathLike,
    array: ArrayLike,
    affine: NDArray[np.float64] | None = None,
    *,
    value_range: Range | None = None,
    dtype: DTypeLike = np.float32,
    description: str = "",
) -> Path:
    """Write an array as NIfTI or NRRD (by default float32, so that no value is clipped) or PNG (8 bit), atomically.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.png``.
        array: ``[C, X, Y, Z]`` or ``[C, H, W]``; for PNG ``[1, H, W]`` or ``[3, H, W]``. In NIfTI and NRRD, a 2D image
            becomes a volume ``[H, W, 1]``.
        affine: 4x4 in mm, RAS+, as in :class:`~monai_diffae.data.scans.Scan`; None: voxels of 1 mm.
        value_range: for PNG: the values shown as black and white; values beyond are clipped. By default the array's
            minimum and maximum.
        dtype: for NIfTI and NRRD: data type of the file. For integers, values are rounded. Values that do not fit into
            the type are clipped; their number is logged.
        description: for NIfTI: the text ``descrip`` of the header, at most 79 characters.

    Raises:
        ConfigError: the file format cannot hold such an array.
        MachineError: the disk is full, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_scan(Path(folder) / "mask.nrrd", np.ones((1, 2, 3, 4)), dtype=np.uint8)
        ...     itk.read(path).array.shape
        (1, 2, 3, 4)
    """
    path = Path(path)
    values, name = _real_numbers(path, array), path.name
    if name.endswith(".png") and values.ndim == 3 and len(values) in (1, 3):
        return _write_png(path, values, value_range or (float(values.min()), float(values.max())))
    if not name.endswith((".nii", ".nii.gz", ".nrrd")) or values.ndim not in (3, 4):
        raise ConfigError(
            f"{name}: cannot hold an array {list(values.shape)}; use .nii.gz or .nrrd (or .png for [1 or 3, H, W])"
        )
    if values.ndim == 3:
        values = values[..., None]
        affine = _DISPLAYED if affine is None else affine
    stored, affine = _as_type(path, values, np.dtype(dtype)), np.eye(4) if affine is None else affine
    if name.endswith(".nrrd"):
        image = itk.to_image(path, stored, affine)
        return write_atomic(path, lambda temporary: itk.write_nrrd(temporary, image, name))
    _set_type(path, nib.Nifti1Header(), stored.dtype)
    volume = nib.Nifti1Image(stored[0] if len(stored) == 1 else np.moveaxis(stored, 0, -1), affine)
    volume.header.set_xyzt_units("mm")
    return _write_nifti(path, volume, description)


def _set_type(path: Path, header: nib.Nifti1Header, dtype: np.dtype[Any]) -> None:
    """Set the data type of a header, without a scaling."""
    try:
        header.set_data_dtype(np.uint8 if dtype.kind == "b" else dtype)
    except HeaderDataError as error:
        raise ConfigError(f"{path.name}: NIfTI cannot hold {dtype}; use float32, float64 or an integer type") from error
    header.set_slope_inter(1.0, 0.0)


def _real_numbers(path: Path, array: ArrayLike) -> Voxels:
    given = np.asarray(array)
    if given.dtype.kind not in "biuf":
        raise ConfigError(f"{path.name}: values of type {given.dtype} cannot be written; give real numbers")
    return given.astype(np.float32)


def write_like(
    path: Path, array: NDArray[Any], header: nib.Nifti1Header, given: DTypeLike | None, description: str
) -> Path:
    """Write a volume ``[1, X, Y, Z]`` with the size, affine, codes and units of another NIfTI file.

    Without a ``given`` type, the values are the other's intensities: the file has its type and scaling, or a larger
    integer type that holds the values.
    """
    values, header = _real_numbers(path, array)[0], header.copy()
    for text in ("descrip", "aux_file", "intent_name", "db_name"):  # they may contain names
        if text in header:  # NIfTI-2 has no db_name
            header[text] = b""
    if given is not None:
        _set_type(path, header, np.dtype(given))
        header["cal_min"] = header["cal_max"] = 0.0  # a viewer would use the scan's window
    dtype, (slope, intercept) = header.get_data_dtype(), header.get_slope_inter()
    if given is None and dtype.kind in "iu" and np.isfinite(values).all():
        ends = sorted((float(end) - (intercept or 0.0)) / (slope or 1.0) for end in (values.min(), values.max()))
        dtype = np.dtype(smallest_type(ends[0], ends[1], (dtype, *INTEGERS)))
        header.set_data_dtype(dtype)
    if dtype.kind not in "iu":
        slope = intercept = None
    stored = _as_type(path, values, dtype, (slope or 1.0, intercept or 0.0)).reshape(header.get_data_shape())
    image_class = nib.Nifti2Image if int(header["sizeof_hdr"]) == 540 else nib.Nifti1Image
    image = image_class(stored, header.get_best_affine(), header)
    image.header.set_slope_inter(slope, intercept)
    return _write_nifti(path, image, description)


def smallest_type(low: float, high: float, types: Sequence[DTypeLike]) -> DTypeLike:
    """The first of the integer types that holds two numbers, rounded; else float32."""
    # Python integers, because float32 rounds the end of int32 up to a number that would wrap around
    lowest, highest = round(low), round(high)
    fitting = (each for each in types if np.iinfo(each).min <= lowest and highest <= np.iinfo(each).max)
    return next(fitting, np.float32)


def _write_nifti(path: Path, image: nib.Nifti1Image, description: str) -> Path:
    image.header["descrip"] = description.encode()
    return write_atomic(path, lambda temporary: nib.save(image, temporary))


def _write_png(path: Path, values: Voxels, value_range: Range) -> Path:
    low, high = value_range
    grey = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    pixels = grey[0] if len(grey) == 1 else np.moveaxis(grey, 0, -1)
    picture = Image.fromarray(np.round(pixels).astype(np.uint8))
    return write_atomic(path, lambda temporary: picture.save(temporary, "PNG"))


def _as_type(
    path: Path, values: Voxels, dtype: np.dtype[Any], scaling: tuple[float, float] = (1.0, 0.0)
) -> NDArray[Any]:
    """Convert values to the type of a file; integers are rounded, and clipped if they do not fit."""
    dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype
    if dtype.kind not in "iu":
        return values.astype(dtype)
    if not np.isfinite(values).all():
        raise ConfigError(f"{path.name}: {dtype} cannot hold values that are NaN or infinite; use float32")
    slope, intercept = scaling
    limits, rounded = np.iinfo(dtype), np.round((values.astype(np.float64) - intercept) / slope)
    num_clipped = int(((rounded < limits.min) | (rounded > limits.max)).sum())
    if num_clipped:
        text = "%s: %s clipped to the range of %s"
        logger.warning(text, path.name, counted(num_clipped, "voxel"), dtype)
    highest = np.nextafter(float(limits.max), 0) if dtype.itemsize == 8 else limits.max  # float64 cannot hold 2^63 - 1
    return np.clip(rounded, limits.min, highest).astype(dtype)


# -- DICOM series ------------------------------------------------------------------------------------------------------

Pixels = NDArray[np.int16] | NDArray[np.uint16]

_WRITER = "MONAI_DIFFAE"
"""The files' ImplementationVersionName, which marks files that may be replaced."""

_MULTI_FRAME_TAGS = (SHARED, FRAMES, "NumberOfFrames", "DimensionOrganizationSequence", "DimensionIndexSequence")
_SINGLE_FRAME_CLASS = {
    uid.EnhancedMRImageStorage: uid.MRImageStorage,
    uid.EnhancedCTImageStorage: uid.CTImageStorage,
    uid.EnhancedPETImageStorage: uid.PositronEmissionTomographyImageStorage,
}
_PIXEL_TAGS = (
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "IconImageSequence",
    "MACParametersSequence",
    "DigitalSignaturesSequence",
    "InstanceCreationDate",
    "InstanceCreationTime",
)
_CURVES_AND_OVERLAYS = (0x50, 0x60)  # the high bytes of their groups


def write_series(
    path: PathLike,
    array: Voxels,
    source: PathLike,
    description: str = "monai_diffae reconstruction",
) -> Path:
    """Write an image in the space of a DICOM scan as a new series of its study: a folder, or a ``.dcm`` file for 2D.

    **The new files are as private as their source**: they contain its name, PatientID, dates and other tags, without
    private tags and overlays. The same result written again has the same UIDs. No value wraps around or is clipped. An
    older result of this name is replaced.
    """
    path, source = Path(path), Path(source)
    files, stack = dicom.read_stack(source)
    if path.exists() and not all(map(_was_written_here, path.iterdir() if path.is_dir() else [path])):
        raise ConfigError(f"{path.name}: holds files that were not written by this package; choose another name")
    with lenient():
        slices = _read_slices(source, files, stack)
        size = stack.sizes if stack is not None else (int(slices[0].Rows), int(slices[0].Columns))
        if array.shape != (1, *size) or not np.isfinite(array).all():
            raise ConfigError(f"{path.name}: {list(array.shape)} must be finite, of the source's size {[1, *size]}")
        planes = array if stack is None else array[0].transpose(2, 1, 0)
        storage = _choose_storage(float(array.min()), float(array.max()), slices)
        pixels = [storage.store(plane) for plane in planes]
        voxels, source_uid = digest(repr(storage), *pixels), str(slices[0].SeriesInstanceUID)
        series = uid.generate_uid(entropy_srcs=["monai_diffae", source_uid, description, voxels])
        for k, dataset in enumerate(slices):
            _describe(dataset, series, k, description)
            _set_pixels(dataset, storage, pixels[k])
        if stack is None:
            return write_atomic(path, lambda file: write_dataset(file, slices[0], writer=_WRITER))
        return write_atomic(path, lambda folder: _save_all(slices, folder, path))


def check_series(source: PathLike) -> None:
    """Raise :class:`ScanError` for a DICOM scan in whose space :func:`write_series` cannot write."""
    with lenient():
        _read_slices(Path(source), *dicom.read_stack(Path(source)))


def _read_slices(path: Path, files: Sequence[Path], stack: Stack | None) -> list[Dataset]:
    """Read one data set without pixels per slice of a scan, and remove what describes the source's pixels."""
    order = [0] if stack is None else stack.nearest_planes()
    if len(files) == 1 < len(order):
        slices = _split_frames(path, _read_tags(files[0]), order)
    else:
        slices = [_read_tags(files[k]) for k in order]
    for k, dataset in enumerate(slices):
        if not is_grey(dataset):
            raise problem(path, "colour images cannot be written as DICOM", "write PNG or NIfTI")
        dataset.remove_private_tags()
        for keyword in _PIXEL_TAGS:
            dataset.pop(keyword, None)
        for tag in [tag for tag in dataset.keys() if tag.group >> 8 in _CURVES_AND_OVERLAYS]:  # noqa: SIM118
            del dataset[tag]
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
    shared, frames = dataset.get(SHARED) or [], dataset[FRAMES].value
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


@dataclass(frozen=True)
class _Storage:
    """How values are stored; ``new`` if slope and intercept are not the source's."""

    slope: float
    intercept: float
    signed: bool
    new: bool

    def store(self, plane: Voxels) -> Pixels:
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


def _was_written_here(path: Path) -> bool:
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
    except (InvalidDicomError, OSError):
        return False
    return bool(meta.get("ImplementationVersionName") == _WRITER)
