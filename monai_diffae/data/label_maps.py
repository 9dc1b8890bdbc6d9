"""Tell label maps (segmentations, masks) that lie beside images from the images, by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePath

_WORDS = "dseg|probseg|seg|segmentation|segmentations|mask|masks|label|labels|labelmap|gt|groundtruth"
_FILE = re.compile(rf"(?:(?P<image>.*[^_. -])[_. -]+)?(?:{_WORDS})(?:[_-]?\d+)?", re.IGNORECASE)
_FOLDERS = frozenset({*_WORDS.split("|"), "segs", "annotations", "ground_truth"})
_IMAGE_FOLDER = re.compile(r"(?:image|img|scan|volume|picture)", re.IGNORECASE)
_BIDS_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")


def find_label_maps(names: Sequence[str]) -> set[str]:
    """Find the label maps among the scans of a folder, by their paths within it, with ``/`` and without suffixes.

    A scan is a label map if

    - one of its folders is named as ``labelsTr`` beside ``imagesTr``, or ``masks`` beside ``images`` or beside scans;
    - its name ends in a word such as ``_seg``, ``_mask``, ``_mask_1`` or ``_dseg``, and the scan that it belongs to is
      there: one in the same folder whose name begins with the rest of the name, one with exactly that name in another
      folder, or for BIDS one of the same subject.

    If nothing but label maps would be found, they are what the folder is about, and none is returned.

    Example:
        >>> sorted(find_label_maps(["benign/benign (1)", "benign/benign (1)_mask", "benign/benign (1)_mask_1"]))
        ['benign/benign (1)_mask', 'benign/benign (1)_mask_1']
        >>> find_label_maps(["imagesTr/a", "labelsTr/a", "t1_seg"])
        {'labelsTr/a'}
    """
    folders = {parent for name in names for parent in PurePath(name).parents}
    with_scans = {PurePath(name).parent for name in names}
    in_folders = {name for name in names if _is_in_label_folder(PurePath(name), folders, with_scans)}
    others = [name for name in names if name not in in_folders]
    label_maps = in_folders | set(_named_as_label_maps(others))
    return label_maps if len(label_maps) < len(names) else set()


def _is_in_label_folder(name: PurePath, folders: Collection[PurePath], with_scans: Collection[PurePath]) -> bool:
    for folder in list(name.parents)[:-1]:
        word = folder.name.lower()
        if word.startswith("labels") and folder.parent / folder.name.replace("labels", "images", 1) in folders:
            return True
        if word in _FOLDERS and (folder.parent in with_scans or _has_image_folder(folder.parent, folders)):
            return True
    return False


def _has_image_folder(parent: PurePath, folders: Collection[PurePath]) -> bool:
    return any(folder.parent == parent and _IMAGE_FOLDER.match(folder.name) for folder in folders)


def _named_as_label_maps(names: Sequence[str]) -> Iterator[str]:
    matches = {name: match for name in names if (match := _FILE.fullmatch(PurePath(name).name))}
    images = [PurePath(name) for name in names if name not in matches]
    stems, subjects = {image.name for image in images}, {_subject(image.name) for image in images} - {None}
    by_folder: dict[PurePath, list[str]] = defaultdict(list)
    for image in images:
        by_folder[image.parent].append(image.name)
    beginnings = {folder: _beginnings(stems) for folder, stems in by_folder.items()}
    for name, match in matches.items():
        rest, folder = match["image"] or "", PurePath(name).parent
        if rest in stems or _subject(rest) in subjects or rest in beginnings.get(folder, ()):
            yield name


def _beginnings(stems: Sequence[str]) -> set[str]:
    """The parts with which the names begin, up to each separator; ``""`` is one of them."""
    return {stem[: match.start()] for stem in stems for match in re.finditer(r"[_. -]+|$|^", stem)}


def _subject(name: str) -> str | None:
    match = _BIDS_SUBJECT.match(name)
    return match[0] if match else None
