"""Find out which level of folders holds the classes of the scans, such as ``benign`` and ``malignant``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from monai_diffae.data.splits import SPLITS

_MODALITIES = frozenset(
    (
        "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "pd", "pdw", "dwi", "adc", "swi", "asl", "bold",
        "mr", "mri", "mra", "ct", "cta", "pet", "us", "dx", "cr", "mg", "axial", "coronal", "sagittal",
    )
)  # fmt: skip
_CLASS_WORDS = ("class", "grade", "label", "stage", "type", "kl", "birads", "bi-rads", "pirads", "score", "level")
_NUMBER = re.compile(r"\d+")
_BIDS = re.compile(r"(?:sub|ses)-")
_NO_CLASSES = re.compile(r"images?(?:Tr|Ts|Val)?$|scans?$|dicom", re.IGNORECASE)
_MAX_CLASSES = 50


@dataclass(frozen=True)
class ClassFolders:
    """What the folders say about each scan.

    Attributes:
        classes: the class folder of each scan, or None; empty: there are no class folders.
        splits: ``train``, ``val`` or ``test``, if folders have such names; empty: they do not.
    """

    classes: list[str | None]
    splits: list[str | None]


def find_class_folders(folders: Sequence[Sequence[str]], *, strict: bool = True) -> ClassFolders:
    """Find the classes and splits in the folders of scans.

    A level of folders holds classes if all scans are in one of at least two folders of this level, there are at least
    two scans per folder on average, and the names are not those of patients (``patient_01``, ``patient_02``), of BIDS
    (``sub-01``, ``anat``), of modalities (``T1``, ``FLAIR``) or of ``images``. The highest such level is used. A level
    whose folders are all named ``train``, ``val`` or ``test`` (or ``training``, ``validation``, ``testing``) is the
    split.

    Args:
        folders: for each scan the folders in which it lies, the outermost first.
        strict: False: use the highest level with several folders, whatever their names and numbers.

    Example:
        >>> find_class_folders([("train", "NORMAL"), ("train", "PNEUMONIA"), ("test", "NORMAL")], strict=False)
        ClassFolders(classes=['NORMAL', 'PNEUMONIA', 'NORMAL'], splits=['train', 'train', 'test'])
    """
    num_levels = max((len(each) for each in folders), default=0) if not strict else min(map(len, folders), default=0)
    levels = [[each[level] if level < len(each) else None for each in folders] for level in range(num_levels)]
    splits: list[str | None] = []
    for names in levels:
        if strict and any(name is not None and _BIDS.match(name) for name in names):
            break
        if all(name is not None and name.lower() in SPLITS for name in names):
            several = len(set(names)) > 1  # a folder ``train`` without ``test`` splits nothing
            splits = [SPLITS[name.lower()] for name in names if name is not None] if several else splits
        elif _are_classes(names) if strict else len(set(names)) > 1:
            return ClassFolders(names, splits)
    return ClassFolders([], splits)


def _are_classes(names: Sequence[str | None]) -> bool:
    folders = sorted({name for name in names if name is not None})
    if not 2 <= len(folders) <= min(_MAX_CLASSES, len(names) // 2):
        return False
    if any(_NO_CLASSES.match(folder) for folder in folders):
        return False
    if all(re.split(r"[-_ ]", folder.lower())[0] in _MODALITIES for folder in folders):
        return False
    return not _are_numbered(folders)


def _are_numbered(folders: Sequence[str]) -> bool:
    """Whether the names differ in their numbers only, as patients do; grades (``0`` to ``4``) do not count."""
    shapes = Counter(_NUMBER.sub("#", folder) for folder in folders)
    shape, count = shapes.most_common(1)[0]
    if "#" not in shape or 2 * count <= len(folders):
        return False
    numbers = sorted({number for folder in folders for number in _NUMBER.findall(folder)})
    is_grades = len(folders) <= 10 and all(len(number) == 1 for number in numbers)
    is_named = shape.replace("#", "").strip(" _-").lower() in ("", *_CLASS_WORDS)
    return not (is_grades and is_named)
