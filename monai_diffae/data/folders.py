"""Scans found by searching through a folder."""

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
class Found:
    """A scan in a folder: its path, its name within the folder without suffix, and the hashed DICOM patient."""

    path: Path
    name: str
    patient: str | None = None


def search_folder(root: Path) -> list[Found]:
    """All scans in a folder and the folders below it, in the order of their names; hidden ones are left out.

    DICOM files of one series become one scan, the radiographs of a folder one each. Files that look like DICOM by
    their suffix but cannot be read are found too: they fail when they are read, instead of vanishing. ``labelsTr``
    beside ``imagesTr``, as in the Medical Segmentation Decathlon's and nnU-Net's folders, holds no scans.
    """
    found: list[Found] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=_warn, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        for labels in [f for f in folders if f.startswith("labels")]:
            images = labels.replace("labels", "images", 1)
            if images in folders:
                folders.remove(labels)
                logger.warning("%s: left out: the label maps of %s, not scans", labels, images)
        here = Path(folder)
        if (real := os.path.realpath(folder)) in seen:  # another link to it: its scans must not count twice
            folders.clear()
            continue
        seen.add(real)
        visible = [here / f for f in sorted(files) if not f.startswith(".")]
        plain = [p for p in visible if (s := scan_suffix(p)) and s not in dicom.SUFFIXES]
        found += [Found(p, name_within(p, root)) for p in plain]
        dicoms = {
            p.name for p in visible if (not scan_suffix(p) or p.suffix.lower() in dicom.SUFFIXES) and dicom.is_dicom(p)
        }
        if dicoms:
            found += _search_dicom(here, dicoms, root)
    return sorted(found, key=lambda f: (f.name, str(f.path)))


def name_within(path: Path, root: Path) -> str:
    """A path within a folder, with ``/`` and without the suffix of a scan.

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


def _search_dicom(folder: Path, names: set[str], root: Path) -> Iterator[Found]:
    series = dicom.list_series(folder)
    for uid, s in series.items():
        if len(s.files) > 1 and s.modality not in dicom.PROJECTIONS:
            path = folder if len(series) == 1 else Path(f"{folder}{dicom.SERIES}{uid}")
            yield Found(path, name_within(path, root), s.patient)
        else:
            yield from (Found(folder / Path(f).name, name_within(Path(f), root), s.patient) for f in s.files)
    lost = names.difference(Path(f).name for s in series.values() for f in s.files)
    yield from (Found(folder / f, name_within(folder / f, root)) for f in sorted(lost))


def _warn(error: OSError) -> None:
    logger.warning("%s: this folder is left out (%s)", Path(error.filename or "").name, error.strerror)


def searched_for() -> str:
    """What a search finds, for messages."""
    return f"{' '.join(SUFFIXES)} or DICOM without suffix"
