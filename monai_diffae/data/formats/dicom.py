"""DICOM: single files, and series as folders.

A series is named by its folder; where a folder holds several, by ``folder#series=UID``. Names of patients, and the
other tags, stay in the file: only the modality and a hash of the PatientID come out.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_diffae.data.formats import itk
from monai_diffae.data.formats.elements import check_elements
from monai_diffae.data.formats.pixel_data import check_pixel_data
from monai_diffae.data.formats.scan import Header, Scan, check_affine, check_budget, problem
from monai_diffae.errors import ScanError

SERIES = "#series="
SUFFIXES = (".dcm", ".dicom", ".ima")
PROJECTIONS = frozenset({"CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA", "OP", "US", "XC", "SM", "ES"})
"""Modalities whose files are pictures of their own, even where they share a series."""

_MODALITY, _PATIENT = "0008|0060", "0010|0020"
_SERIES, _INSTANCE, _POSITION = "0020|000e", "0020|0013", "0020|0032"


@dataclass(frozen=True)
class Series:
    """The files of one series in spatial order, with what a cohort needs to know of it."""

    files: tuple[str, ...]
    modality: str | None
    patient: str | None


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its suffix or, where it has none, by the ``DICM`` in its preamble."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if path.name == "DICOMDIR" or not (suffix == "" or suffix[1:].isdigit()):  # names such as 1.2.840.113619.2 too
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def hash_patient(patient_id: str) -> str:
    """A PatientID as 12 hexadecimal digits: the same for the same patient, and never the id itself.

    Example:
        >>> hash_patient("MRN 0042") == hash_patient("MRN 0042 "), len(hash_patient("MRN 0042"))
        (True, 12)
    """
    return hashlib.sha256(f"monai_diffae:patient:{patient_id.strip()}".encode()).hexdigest()[:12]


def split_series(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """A series' folder and UID: ``ct#series=1.2.3`` is series 1.2.3 of the folder ``ct``; any other path is itself."""
    text = os.fspath(path)
    if SERIES not in text:
        return Path(text), None
    folder, _, uid = text.rpartition(SERIES)
    return Path(folder), uid


def list_series(folder: Path) -> dict[str, Series]:
    """The series of one folder, by UID in sorted order; ``{}`` where it holds no DICOM."""
    return _list_series(str(folder), Path(folder).stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _list_series(folder: str, _changed: int) -> dict[str, Series]:
    # not GDCM's own search: it reads the whole folder again for every series, hours for a folder of radiographs
    groups: dict[str, list[tuple[str, sitk.ImageFileReader]]] = {}
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith(".") or not entry.is_file() or not is_dicom(Path(entry.path)):
            continue
        if (reader := _header_of(Path(entry.path))) is not None:
            groups.setdefault(_tag(reader, _SERIES) or "", []).append((entry.path, reader))
    return {uid: _sorted_series(groups[uid]) for uid in sorted(groups)}


def _sorted_series(group: list[tuple[str, sitk.ImageFileReader]]) -> Series:
    """Files along the normal of the first slice; by instance number where positions are not given."""
    normal = _normal(group[0][1])

    def place(member: tuple[str, sitk.ImageFileReader]) -> tuple[float, float, str]:
        position = _numbers(member[1], _POSITION, 3)
        number = _numbers(member[1], _INSTANCE, 1) or [0.0]
        return (float(np.dot(position, normal)) if position else 0.0, number[0], member[0])

    first = group[0][1]
    patient = _tag(first, _PATIENT)
    return Series(
        tuple(file for file, _ in sorted(group, key=place)),
        _tag(first, _MODALITY),
        hash_patient(patient) if patient else None,
    )


def read_patient(path: Path) -> str | None:
    """The hashed PatientID of a file or series; None where it has none or cannot be read."""
    folder, uid = split_series(path)
    if folder.is_dir():
        series = list_series(folder)
        return next((s.patient for u, s in series.items() if uid in (None, u)), None)
    reader = _header_of(folder) if folder.is_file() else None
    patient = _tag(reader, _PATIENT) if reader is not None else None
    return hash_patient(patient) if patient else None


def _header_of(path: Path) -> sitk.ImageFileReader | None:
    try:
        return _opened(path)
    except (ScanError, OSError):
        return None


def read_file(path: Path) -> Scan:
    """One DICOM file: ``[C, H, W]``, or ``[C, X, Y, Z]`` for one of several frames.

    Raises:
        ScanError: the file is damaged, incomplete, in a compression without decoder, or no picture.
    """
    reader = _opened(path)
    check_pixel_data(path, reader)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise itk.unreadable(path, error) from error
    array = itk.to_array(image)  # GDCM has turned MONOCHROME1, where small values are white, into MONOCHROME2
    affine = itk.to_affine(image)
    if array.shape[-1] == 1:  # [C, x, y, 1] -> rows, columns, as displayed
        array, affine = array[..., 0].swapaxes(1, 2), affine[:, [1, 0, 2, 3]]
    return Scan(np.ascontiguousarray(array), affine, _tag(reader, _MODALITY))


def read_series(path: Path) -> Scan:
    """A folder's series (or the one that ``#series=UID`` names): ``[C, X, Y, Z]``; ``[C, H, W]`` for a single file.

    Raises:
        ScanError: there is none, there are several, or slices are missing, doubled, damaged or of different sizes.
    """
    files = _files(path)
    if len(files) == 1:
        return read_file(Path(files[0]))
    readers = [_opened(Path(f)) for f in files]
    _, affine = _series_geometry(path, readers)
    for file, header in zip(files, readers, strict=True):
        check_pixel_data(Path(file), header)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise itk.unreadable(path, error) from error
    return Scan(itk.to_array(image), affine, _tag(readers[0], _MODALITY))


def read_header(path: Path) -> Header:
    """Sizes and affine of a file or series, without its voxels."""
    folder, _ = split_series(path)
    if folder.is_dir():
        files = _files(path)
        if len(files) > 1:
            return Header(*_series_geometry(path, [_opened(Path(f)) for f in files]))
        folder = Path(files[0])
    reader = _opened(folder)
    sizes, affine = reader.GetSize()[:3], itk.to_affine(reader)
    if len(sizes) < 3 or sizes[2] == 1:
        return Header((sizes[1], sizes[0]), affine[:, [1, 0, 2, 3]])
    return Header(sizes, affine)


def _files(path: Path) -> tuple[str, ...]:
    folder, uid = split_series(path)
    series = list_series(folder)
    if uid is not None:
        if uid not in series:
            raise problem(folder, "the folder has no DICOM series of this UID", "check the path behind #series=")
        return series[uid].files
    if not series:
        raise problem(folder, "the folder holds no readable DICOM series", "give a scan file or a series' folder")
    if len(series) > 1:
        todo = f"give the folder as cohort, or one as folder{SERIES}UID"
        raise problem(folder, f"the folder holds {len(series)} DICOM series", todo)
    (only,) = series.values()
    lost = {p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")}
    lost -= {Path(f).name for f in only.files}
    if lost:
        raise problem(folder, f"{len(lost)} of its files are not readable DICOM ({min(lost)})", "copy them again")
    return only.files


def _opened(path: Path) -> sitk.ImageFileReader:
    check_elements(path)
    return itk.opened(path)


def _series_geometry(
    path: Path, readers: list[sitk.ImageFileReader]
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Sizes and affine of a series, from its headers; refuses gaps, doubles and mixed sizes or orientations."""
    kinds = {(*r.GetSize()[:2], r.GetNumberOfComponents()) for r in readers}
    if len(kinds) > 1:
        raise problem(path, f"its slices have {len(kinds)} different sizes", "keep the files of one volume only")
    ((width, height, components),) = kinds
    sizes = (int(width), int(height), len(readers))
    check_budget(path, sizes, components)
    affine = itk.to_affine(readers[0])
    positions = [_numbers(r, _POSITION, 3) for r in readers]
    if all(positions):
        normals = np.array([_normal(r) for r in readers])
        if (normals @ normals[0] < 0.999).any():
            raise problem(path, "its slices have different orientations", "split localisers from the volume")
        points = np.array(positions)
        _check_spacing(path, points @ normals[0])
        affine[:3, 2] = (points[-1] - points[0]) / (len(points) - 1) * [-1, -1, 1]
    check_affine(path, affine)
    return sizes, affine


def _check_spacing(path: Path, along: NDArray[np.float64]) -> None:
    """``along``: each slice's position in mm along the series' normal, in the order of the files."""
    steps = np.abs(np.diff(along))
    usual = float(np.median(steps))
    if steps.min() < max(0.01 * usual, 1e-3):
        raise problem(path, "two of its slices lie at one position (doubled, or 4D)", "keep one file a position")
    if steps.max() > 1.5 * usual:
        gap = f"{steps.max():.3g} mm where others are {usual:.3g} mm"
        raise problem(path, f"a slice is missing (a gap of {gap})", "copy the whole series again")
    if steps.max() - steps.min() > 0.1 * usual:
        shown = f"{steps.min():.3g} to {steps.max():.3g} mm"
        raise problem(path, f"its slices are unevenly spaced ({shown})", "resample it to an even spacing")


def _normal(reader: sitk.ImageFileReader) -> NDArray[np.float64]:
    """The unit vector across the slice, in DICOM's own axes (LPS)."""
    return np.array(reader.GetDirection()[2::3]) if len(reader.GetDirection()) == 9 else np.array([0.0, 0.0, 1.0])


def _numbers(reader: sitk.ImageFileReader, tag: str, count: int) -> list[float] | None:
    try:
        numbers = [float(v) for v in (_tag(reader, tag) or "").split("\\")]
    except ValueError:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _tag(reader: sitk.ImageFileReader, tag: str) -> str | None:
    """A tag's text without padding; None where it is absent or empty."""
    value = reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""
    return value or None
