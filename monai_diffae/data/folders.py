"""Search a folder for scans."""

# tested in tests/data/test_cohorts.py

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.data.formats import dicom
from monai_diffae.data.scans import SUFFIXES, scan_suffix

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundScan:
    """A scan in a folder: its path, its name within the folder without suffix, and the hash of its DICOM patient."""

    path: Path
    name: str
    patient: str | None = None


def search_folder(root: Path) -> list[FoundScan]:
    """Find all scans in a folder and its subfolders, sorted by name; hidden files and folders are skipped.

    The DICOM files of a series are one scan, but each radiograph is a scan of its own. Unreadable files with a DICOM
    suffix are included, so that they are reported as failures when they are read. ``labelsTr`` beside ``imagesTr``
    (the layout of the Medical Segmentation Decathlon and of nnU-Net) is skipped, because it contains no scans.
    """
    scans: list[FoundScan] = []
    visited: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=_warn, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        for labels in [f for f in folders if f.startswith("labels")]:
            images = labels.replace("labels", "images", 1)
            if images in folders:
                folders.remove(labels)
                logger.warning("%s: skipped, because it holds the label maps of %s and no scans", labels, images)
        if (real_path := os.path.realpath(folder)) in visited:  # a link to a folder must not count its scans twice
            folders.clear()
            continue
        visited.add(real_path)
        visible = [Path(folder) / f for f in sorted(files) if not f.startswith(".")]
        non_dicom = [p for p in visible if (s := scan_suffix(p)) and s not in dicom.SUFFIXES]
        scans += [FoundScan(p, name_within(p, root)) for p in non_dicom]
        dicom_names = {
            p.name for p in visible if (not scan_suffix(p) or p.suffix.lower() in dicom.SUFFIXES) and dicom.is_dicom(p)
        }
        if dicom_names:
            scans += _search_dicom(Path(folder), dicom_names, root)
    return sorted(scans, key=lambda scan: (scan.name, str(scan.path)))


def name_within(path: Path, root: Path) -> str:
    """A scan's name: its path within a folder, with ``/`` and without the suffix.

    Example:
        >>> name_within(Path("/data/train/a.nii.gz"), Path("/data"))
        'train/a'
    """
    folder, uid = dicom.split_series(path)
    name = Path(os.path.relpath(folder, root)).as_posix()
    suffix = scan_suffix(folder)
    if name == ".":
        name = folder.name
    elif suffix:
        name = name[: -len(suffix)]
    return f"{name}/{dicom.hash_patient(uid)[:6]}" if uid else name


def _search_dicom(folder: Path, names: set[str], root: Path) -> Iterator[FoundScan]:
    series = dicom.list_series(folder)
    for uid, s in series.items():
        if len(s.files) > 1 and s.modality not in dicom.PROJECTIONS:
            path = folder if len(series) == 1 else Path(f"{folder}{dicom.SERIES}{uid}")
            yield FoundScan(path, name_within(path, root), s.patient)
        else:
            yield from (FoundScan(folder / Path(f).name, name_within(Path(f), root), s.patient) for f in s.files)
    unreadable = names.difference(Path(f).name for s in series.values() for f in s.files)
    yield from (FoundScan(folder / f, name_within(folder / f, root)) for f in sorted(unreadable))


def _warn(error: OSError) -> None:
    logger.warning("%s: this folder is skipped (%s)", Path(error.filename or "").name, error.strerror)


def searched_formats() -> str:
    """The formats that a search finds, for messages."""
    return f"{' '.join(SUFFIXES)} or DICOM without suffix"
