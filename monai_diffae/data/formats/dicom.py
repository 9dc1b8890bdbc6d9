"""Read DICOM: single files, and series as folders.

The path of a series is its folder, or ``folder#series=UID`` if the folder holds several. Names of patients and other
tags stay in the files: only the modality and a hash of the PatientID are read.
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from monai_diffae.data.fingerprints import CHANNEL, split_channel
from monai_diffae.data.formats.dicom_pixels import decode, lenient, read_tags, without_padding
from monai_diffae.data.formats.dicom_planes import TAGS, Stack, flat_geometry, make_stack, read_planes, to_volume
from monai_diffae.data.formats.scan import Header, Scan, check_affine, check_budget
from monai_diffae.errors import ScanError, problem
from monai_diffae.policies import PathLike

SERIES = "#series="
SUFFIXES = (".dcm", ".dicom", ".ima")
PROJECTIONS = frozenset({"CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA", "OP", "US", "XC", "SM", "ES"})
"""Modalities in which each file is an image of its own, even if several share a series."""

_IDENTITY = ["Modality", "PatientID", "SeriesInstanceUID", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"]
_SERIES = [*_IDENTITY, "StudyInstanceUID", "SeriesDescription"]
_HEADER = [*_IDENTITY, *TAGS, "PhotometricInterpretation", "ModalityLUTSequence"]


Identity = Sequence[str | None]
"""From a file's header: the UID of its series, then modality, patient, study and description as in :class:`Series`."""


@dataclass(frozen=True)
class Series:
    """The files of one series in a folder, sorted by name, with its modality and the hash of its patient."""

    folder: str
    names: tuple[str, ...]
    modality: str | None
    patient: str | None
    study: str | None  # its UID
    description: str | None

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of the files."""
        return tuple(Path(self.folder, name) for name in self.names)

    @property
    def is_volume(self) -> bool:
        """Whether the files are one scan; otherwise each is a scan of its own."""
        return len(self.names) > 1 and self.modality not in PROJECTIONS


# by folder: its time, its series, and the patients of files that are scans of their own
_listed: dict[str, tuple[int, dict[str, Series], dict[str, str | None]]] = {}


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its suffix or, without a suffix, by the ``DICM`` after its preamble."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    is_plain = suffix == "" or suffix[1:].isdigit()  # the name may be a UID, such as 1.2.840.113619.2
    if path.name == "DICOMDIR" or not is_plain:
        return False
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def hash_patient(patient_id: str) -> str:
    """Hash a PatientID to 12 hexadecimal digits, which are equal for equal ids."""
    plain = unicodedata.normalize("NFKC", patient_id).strip()
    return hashlib.sha256(f"monai_diffae:patient:{plain}".encode()).hexdigest()[:12]


def split_series(path: PathLike) -> tuple[Path, str | None]:
    """Split ``ct#series=1.2.3`` into the folder ``ct`` and the UID ``1.2.3``; other paths have no UID (None).

    The number of a channel is left out.
    """
    text, uid = split_text(path)
    return Path(text), uid


def split_text(path: PathLike) -> tuple[str, str | None]:
    """Split a path as :func:`split_series` does, but leave it as text, which is faster."""
    text = os.fspath(path)
    if SERIES in text:
        folder, _, uid = text.rpartition(SERIES)
        return folder, uid
    return os.fspath(split_channel(text)[0]) if CHANNEL in text else text, None


def list_series(folder: Path) -> dict[str, Series]:
    """List the series of a folder by UID, sorted; ``{}`` if it holds no DICOM."""
    path, changed = os.fspath(folder), folder_time(folder)
    if path not in _listed or _listed[path][0] != changed:
        entries = [entry for entry in os.scandir(path) if entry.is_file() and not entry.name.startswith(".")]
        names = sorted(entry.name for entry in entries if is_dicom(Path(entry.path)))
        keep_series(path, changed, names, [read_identity(Path(path, name)) for name in names])
    return _listed[path][1]


def folder_time(folder: PathLike) -> int:
    """The time at which a file was last added to a folder or removed from it, in ns."""
    return os.stat(folder).st_mtime_ns  # noqa: PTH116 - as scan_suffix


def keep_series(folder: str, changed: int, names: Sequence[str], identities: Iterable[Identity | None]) -> None:
    """Keep the series of a folder for :func:`list_series`, by the sorted names and identities of its files."""
    groups: dict[str, list[tuple[str, Identity]]] = {}
    for name, identity in zip(names, identities, strict=True):
        if identity is not None:
            groups.setdefault(identity[0] or "", []).append((name, identity))
    series = {
        uid: Series(folder, tuple(name for name, _ in group), *group[0][1][1:]) for uid, group in sorted(groups.items())
    }
    others = [each for uid, each in groups.items() if not series[uid].is_volume]
    _listed[folder] = changed, series, {name: identity[2] for each in others for name, identity in each}


def read_identity(path: Path) -> Identity | None:
    """Read a file's :data:`Identity`; None if it cannot be read."""
    if (tags := _try_tags(path)) is None:
        return None
    study, description = _text(tags, "StudyInstanceUID"), _text(tags, "SeriesDescription")
    return _text(tags, "SeriesInstanceUID"), _text(tags, "Modality"), _patient(tags), study, description


def series_path(path: Path) -> Path:
    """The path of a series with its UID, also if its folder holds no other; other paths unchanged."""
    folder, uid = split_series(path)
    if uid is not None or not folder.is_dir():
        return path
    return next((Path(f"{folder}{SERIES}{name}") for name in list_series(folder)), path)


def find_series(path: Path) -> Series | None:
    """The series at a path of one, such as ``ct#series=1.2.3``; None for others, and for files."""
    folder, uid = split_series(path)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises if the name is too long
        return None
    series = list_series(folder)
    return next(iter(series.values()), None) if uid is None else series.get(uid)


def read_patient(path: Path) -> str | None:
    """Read the hashed PatientID of a file or series; None if it has none or cannot be read."""
    if series := find_series(path):
        return series.patient
    file, _ = split_series(path)
    changed, _, patients = _listed.get(os.fspath(file.parent), (None, {}, {}))
    if file.name in patients and changed == folder_time(file.parent):
        return patients[file.name]
    tags = None if os.path.isdir(file) else _try_tags(file)  # noqa: PTH112 - as above
    return None if tags is None else _patient(tags)


def _try_tags(path: Path) -> Dataset | None:
    try:
        return read_tags(path, _SERIES)
    except (ScanError, OSError):
        return None


def _patient(tags: Dataset) -> str | None:
    patient = _text(tags, "PatientID")
    return hash_patient(patient) if patient else None


def _text(tags: Dataset, keyword: str) -> str | None:
    """A tag's text without padding; None if it is absent or empty."""
    with lenient():
        return str(tags.get(keyword) or "").strip(" \0") or None


def read(path: Path) -> Scan:
    """Read a file or series: ``[C, X, Y, Z]`` for several slices or frames, else ``[C, H, W]``."""
    files, headers, stack = _read_headers(path)
    flat_affine, flat_rescale = flat_geometry(headers[0])
    rescales = [flat_rescale] if stack is None else stack.rescales
    per_file = np.reshape(rescales, (len(files), -1, 2))
    # one by one, because ITK's series reader casts all slices to the type of the first, which loses fractions
    decoded = [decode(file, each) for file, each in zip(files, per_file, strict=True)]
    arrays = without_padding([array for array, _ in decoded], [mask for _, mask in decoded])
    modality = _text(headers[0], "Modality")
    if stack is None:  # rows and columns as displayed
        array = np.ascontiguousarray(arrays[0][..., 0].swapaxes(1, 2))
        return Scan(array, flat_affine, modality)
    planes = np.concatenate(arrays, axis=3)[..., stack.order]
    return Scan(to_volume(planes, stack), stack.affine, modality, doubts=stack.doubts)


def read_header(path: Path) -> Header:
    """Read size and affine of a file or series, without its voxels."""
    _, headers, stack = _read_headers(path)
    first = headers[0]
    channels = 3 if _text(first, "PhotometricInterpretation") == "PALETTE COLOR" else _samples(first)
    if stack is not None:
        return Header(stack.sizes, stack.affine, stack.doubts, channels)
    return Header((int(first.Rows), int(first.Columns)), flat_geometry(first)[0], channels=channels)


def read_stack(path: Path) -> tuple[tuple[Path, ...], Stack | None]:
    """List a scan's files, and read how its planes (in the order of files and frames) form a volume; None for one."""
    files, _, stack = _read_headers(path)
    return files, stack


def _read_headers(path: Path) -> tuple[tuple[Path, ...], list[Dataset], Stack | None]:
    folder, _ = split_series(path)
    files, headers = _files(path) if folder.is_dir() else (folder,), []
    for file in files:
        headers.append(read_tags(file, _HEADER))
        if headers[-1].get("ModalityLUTSequence"):  # without it, values would be those that are stored
            wrong = "a table converts its stored values (ModalityLUTSequence), which is not supported"
            raise problem(file, wrong, "export it with a rescale slope and intercept")
    return files, headers, _stack(path, files, headers)


def _stack(path: Path, files: tuple[Path, ...], headers: list[Dataset]) -> Stack | None:
    kinds = {(int(h.Columns), int(h.Rows), int(h.get("NumberOfFrames") or 1), _samples(h)) for h in headers}
    if len(kinds) > 1:
        raise problem(path, f"its slices have {len(kinds)} different sizes", "keep the files of one volume only")
    patients = {patient for h in headers if (patient := _text(h, "PatientID"))}
    if len(patients) > 1:  # tools that remove names may give every series the same UID
        wrong = f"its slices have the PatientIDs of {len(patients)} patients"
        raise problem(path, wrong, "keep the files of one patient only")
    ((columns, rows, frames, samples),) = kinds
    check_budget(path, (columns, rows, len(files) * frames), samples)
    if len(files) * frames == 1:
        check_affine(path, flat_geometry(headers[0])[0])
        return None
    if len(files) > 1 and frames > 1:
        raise problem(path, f"some of its {len(files)} files have several frames each", "give one of the files")
    planes = [plane for file, header in zip(files, headers, strict=True) for plane in read_planes(file, header)]
    if len(planes) != len(files) * frames:
        raise problem(path, f"it has {frames} frames, but positions for {len(planes)}", "export it again")
    return make_stack(path, planes, columns, rows)


def _samples(header: Dataset) -> int:
    return int(header.get("SamplesPerPixel") or 1)


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
