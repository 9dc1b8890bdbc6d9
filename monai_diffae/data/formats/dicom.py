"""Read DICOM: single files, and series as folders.

The path of a series is its folder, or ``folder#series=UID`` if the folder holds several. Names of patients and other
tags stay in the files: only the modality and a hash of the PatientID are read.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_diffae.data.formats import itk
from monai_diffae.data.formats.elements import Elements, check_elements, with_right_syntax
from monai_diffae.data.formats.padding import rescaling, without_padding
from monai_diffae.data.formats.pixel_data import check_pixel_data
from monai_diffae.data.formats.planes import Plane, Stack, make_stack, read_planes, to_volume
from monai_diffae.data.formats.scan import Doubt, Header, Scan, check_budget, problem
from monai_diffae.errors import ScanError

SERIES = "#series="
SUFFIXES = (".dcm", ".dicom", ".ima")
PROJECTIONS = frozenset({"CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA", "OP", "US", "XC", "SM", "ES"})
"""Modalities in which each file is an image of its own, even if several share a series."""

_MODALITY, _PATIENT, _SERIES = "0008|0060", "0010|0020", "0020|000e"
_COLOURS, _LUT_SHAPE, _BITS, _SIGNED = "0028|0004", "2050|0020", "0028|0101", "0028|0103"
_SPACINGS = ("0028|0030", "0018|1164", "0018|2010")  # PixelSpacing, of the detector, of a scanned film


@dataclass(frozen=True)
class Series:
    """The files of one series, sorted by name, with its modality and the hash of its patient."""

    files: tuple[Path, ...]
    modality: str | None
    patient: str | None


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its suffix or, without a suffix, by the ``DICM`` after its preamble."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if path.name == "DICOMDIR" or not (
        suffix == "" or suffix[1:].isdigit()
    ):  # the name may be a UID, such as 1.2.840.113619.2
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def hash_patient(patient_id: str) -> str:
    """Hash a PatientID to 12 hexadecimal digits, which are equal for equal ids.

    Example:
        >>> hash_patient("MRN 0042") == hash_patient("MRN 0042 "), len(hash_patient("MRN 0042"))
        (True, 12)
    """
    return hashlib.sha256(f"monai_diffae:patient:{patient_id.strip()}".encode()).hexdigest()[:12]


def split_series(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Split ``ct#series=1.2.3`` into the folder ``ct`` and the UID ``1.2.3``; other paths have no UID (None)."""
    text = os.fspath(path)
    if SERIES not in text:
        return Path(text), None
    folder, _, uid = text.rpartition(SERIES)
    return Path(folder), uid


def list_series(folder: Path) -> dict[str, Series]:
    """List the series of a folder by UID, sorted; ``{}`` if it holds no DICOM."""
    return _list_series(str(folder), Path(folder).stat().st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _list_series(folder: str, _changed: int) -> dict[str, Series]:
    # GDCM's own search reads the whole folder again for each series, which takes hours for a folder of radiographs
    groups: dict[str, list[tuple[str, sitk.ImageFileReader]]] = {}
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith(".") or not entry.is_file() or not is_dicom(Path(entry.path)):
            continue
        if (reader := _try_open(Path(entry.path))) is not None:
            groups.setdefault(_tag(reader, _SERIES) or "", []).append((entry.path, reader))
    return {uid: _series(groups[uid]) for uid in sorted(groups)}


def _series(group: list[tuple[str, sitk.ImageFileReader]]) -> Series:
    first = group[0][1]
    patient = _tag(first, _PATIENT)
    files = tuple(Path(file) for file, _ in group)
    return Series(files, _tag(first, _MODALITY), hash_patient(patient) if patient else None)


def read_patient(path: Path) -> str | None:
    """Read the hashed PatientID of a file or series; None if it has none or cannot be read."""
    folder, uid = split_series(path)
    try:
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except OSError:  # the name is too long
        return None
    if is_folder:
        series = list_series(folder)
        return next((s.patient for u, s in series.items() if uid in (None, u)), None)
    reader = _try_open(folder) if is_file else None
    patient = _tag(reader, _PATIENT) if reader is not None else None
    return hash_patient(patient) if patient else None


def _try_open(path: Path) -> sitk.ImageFileReader | None:
    try:
        return _read_header(path, check_elements(path))
    except (ScanError, OSError):
        return None


def read_file(path: Path) -> Scan:
    """Read one DICOM file: ``[C, H, W]``, or ``[C, X, Y, Z]`` if it has several frames.

    Raises:
        ScanError: the file is damaged or incomplete, its compression cannot be decoded, it has no pixels, or its
            frames do not form a volume.
    """
    return _read(path, (path,))


def read_series(path: Path) -> Scan:
    """Read the series of a folder, or the one named by ``#series=UID``: ``[C, X, Y, Z]``, or ``[C, H, W]`` of one file.

    Raises:
        ScanError: there is no series or more than one, or slices are missing, duplicated, damaged or of several sizes.
    """
    return _read(path, _files(path))


def read_header(path: Path) -> Header:
    """Read size and affine of a file or series, without its voxels."""
    files, readers, stack = _read_stack(path)
    doubts = _encoding_doubts(files, readers)
    if stack is not None:
        return Header(stack.sizes, stack.affine, stack.doubts + doubts, readers[0].GetNumberOfComponents())
    size = readers[0].GetSize()[1::-1]
    return Header(size, _affine_2d(readers[0]), doubts, readers[0].GetNumberOfComponents())


def read_stack(path: Path) -> tuple[tuple[Path, ...], Stack | None]:
    """List a scan's files, and read how its planes (in the order of files and frames) form a volume; None for one."""
    files, _, stack = _read_stack(path)
    return files, stack


def _read_stack(path: Path) -> tuple[tuple[Path, ...], list[sitk.ImageFileReader], Stack | None]:
    folder, _ = split_series(path)
    files = _files(path) if folder.is_dir() else (folder,)
    readers = [_open(file) for file in files]
    return files, readers, _stack(path, files, readers)


def _read(path: Path, files: tuple[Path, ...]) -> Scan:
    readers = [_open(file) for file in files]
    stack, modality = _stack(path, files, readers), _tag(readers[0], _MODALITY)
    # one by one, because ITK's series reader casts all slices to the type of the first, which loses fractions
    slices = [_decode(file, reader) for file, reader in zip(files, readers, strict=True)]
    frames = _planes(path, readers[0]) if len(files) == 1 and stack is not None else []
    slices = without_padding(slices, readers, frames[0].rescale if frames else None)
    doubts = _encoding_doubts(files, readers)
    if stack is None:  # rows and columns as displayed
        array = np.ascontiguousarray(_as_shown(slices[0], readers[0])[..., 0].swapaxes(1, 2))
        return Scan(array, _affine_2d(readers[0]), modality, doubts=doubts)
    if len(files) > 1:
        array = np.concatenate([slices[k] for k in stack.order], axis=3)
    else:
        array = _rescale(slices[0], frames)[..., stack.order]
    return Scan(to_volume(array, stack), stack.affine, modality, doubts=stack.doubts + doubts)


def _stack(path: Path, files: tuple[Path, ...], readers: list[sitk.ImageFileReader]) -> Stack | None:
    kinds = {(*r.GetSize(), r.GetNumberOfComponents()) for r in readers}
    if len(kinds) > 1:
        raise problem(path, f"its slices have {len(kinds)} different sizes", "keep the files of one volume only")
    patients = {patient for r in readers if (patient := _tag(r, _PATIENT))}
    if len(patients) > 1:  # tools that remove names may give every series the same UID
        wrong = f"its slices have the PatientIDs of {len(patients)} patients"
        raise problem(path, wrong, "keep the files of one patient only")
    ((columns, rows, frames, components),) = kinds
    if len(files) * frames == 1:
        return None
    if len(files) > 1 and frames > 1:
        raise problem(path, f"it has {len(files)} files with several frames each", "give one of the files")
    check_budget(path, (columns, rows, len(files) * frames), components)
    planes = [plane for file, reader in zip(files, readers, strict=True) for plane in _planes(file, reader)]
    if len(planes) != len(files) * frames:
        raise problem(path, f"it has {frames} frames, but positions for {len(planes)}", "export it again")
    return make_stack(path, planes, columns, rows)


def _decode(path: Path, reader: sitk.ImageFileReader) -> NDArray[np.float32]:
    """Decode to ``[C, X, Y, frames]``; GDCM converts MONOCHROME1, where small values are white, to MONOCHROME2."""
    check_pixel_data(path, reader)
    try:
        with _readable(path, _elements(path, reader)) as file, itk.silent_stderr():
            reader.SetFileName(str(file))
            return itk.to_array(path, reader.Execute())
    except RuntimeError as error:
        raise itk.unreadable(path, error) from error


def _planes(path: Path, reader: sitk.ImageFileReader) -> list[Plane]:
    with _readable(path, _elements(path, reader)) as file:
        return read_planes(path, file)


def _rescale(array: NDArray[np.float32], frames: list[Plane]) -> NDArray[np.float32]:
    # GDCM applies the first frame's slope and intercept to all frames
    slopes, intercepts = np.array([frame.rescale for frame in frames]).T
    return ((array - intercepts[0]) / slopes[0] * slopes + intercepts).astype(np.float32)


def _as_shown(array: NDArray[np.float32], reader: sitk.ImageFileReader) -> NDArray[np.float32]:
    """Invert a MONOCHROME2 image that is shown inverted, as GDCM inverts MONOCHROME1 (DICOM PS3.3 C.11.6.1.2)."""
    if (_tag(reader, _COLOURS), _tag(reader, _LUT_SHAPE)) != ("MONOCHROME2", "INVERSE"):
        return array
    slope, intercept = rescaling(reader)
    highest = -1 if _tag(reader, _SIGNED) == "1" else 2 ** int(_tag(reader, _BITS) or 16) - 1
    return (slope * highest + 2 * intercept - array).astype(np.float32)


def _affine_2d(reader: sitk.ImageFileReader) -> NDArray[np.float64]:
    """The affine of one image; GDCM ignores the PixelSpacing of radiographs, which is calibrated if there are two."""
    affine = itk.to_affine(reader)[:, [1, 0, 2, 3]]
    for tag in _SPACINGS:
        with suppress(ValueError):  # it has no numbers
            rows, columns = (float(v) for v in (_tag(reader, tag) or "").split("\\"))
            if min(rows, columns) > 0 and max(rows, columns) < math.inf:
                affine[:, :2] *= (rows, columns) / np.linalg.norm(affine[:3, :2], axis=0)
                break
    return affine


def _files(path: Path) -> tuple[Path, ...]:
    folder, uid = split_series(path)
    series = list_series(folder)
    if uid is not None:
        if uid not in series:
            raise problem(folder, "the folder has no DICOM series with this UID", "check the UID after #series=")
        return series[uid].files
    if not series:
        raise problem(folder, "the folder has no readable DICOM series", "give a scan file or the folder of a series")
    if len(series) > 1:
        todo = f"give the folder as cohort, or one series as folder{SERIES}UID"
        raise problem(folder, f"the folder holds {len(series)} DICOM series", todo)
    (only,) = series.values()
    unreadable = {p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")}
    unreadable -= {f.name for f in only.files}
    if unreadable:
        count, example = len(unreadable), min(unreadable)
        raise problem(folder, f"{count} of its files are not readable DICOM ({example})", "copy them again")
    return only.files


def _open(path: Path) -> sitk.ImageFileReader:
    elements = check_elements(path)
    if elements.has_value_table:
        wrong = "a table converts its stored values (ModalityLUTSequence), which is not supported"
        raise problem(path, wrong, "export it with a rescale slope and intercept")
    return _read_header(path, elements)


def _read_header(path: Path, elements: Elements) -> sitk.ImageFileReader:
    with _readable(path, elements) as file:
        return itk.open_header(path, file)


@contextmanager
def _readable(path: Path, elements: Elements) -> Iterator[Path]:
    """The file, or a copy with the right transfer syntax: with the wrong one, GDCM needs seconds."""
    if elements.wrong_syntax is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "scan.dcm"
        copy.write_bytes(with_right_syntax(path.read_bytes(), elements.wrong_syntax))
        yield copy


def _was_copied(path: Path, reader: sitk.ImageFileReader) -> bool:
    return reader.GetFileName() != str(path)


def _elements(path: Path, reader: sitk.ImageFileReader) -> Elements:
    """The elements of a file that was checked before: they are checked again only if they are special."""
    return check_elements(path) if _was_copied(path, reader) else Elements()


def _encoding_doubts(files: Sequence[Path], readers: Sequence[sitk.ImageFileReader]) -> tuple[Doubt, ...]:
    if not any(_was_copied(file, reader) for file, reader in zip(files, readers, strict=True)):
        return ()
    wrong = "its elements are implicit, but its transfer syntax says explicit"
    return (Doubt("encoding", wrong, "they are read as implicit", "set its TransferSyntaxUID to 1.2.840.10008.1.2"),)


def _tag(reader: sitk.ImageFileReader, tag: str) -> str | None:
    """A tag's text without padding; None if it is absent or empty."""
    value = reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""
    return value or None
