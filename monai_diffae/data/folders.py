"""Search a folder for scans, and tell the label maps beside them from the images, by their names."""

import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, groupby
from pathlib import Path, PurePath

from monai_diffae.data.atomic import PartStore
from monai_diffae.data.cases import Case
from monai_diffae.data.fingerprints import digest, split_channel
from monai_diffae.data.formats import dicom
from monai_diffae.data.progress import track
from monai_diffae.data.scan_states import file_state
from monai_diffae.data.scans import scan_suffix
from monai_diffae.data.sequences import group_files
from monai_diffae.errors import counted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import PathLike

with on_first_use:
    from monai_diffae.data import streamed

logger = logging.getLogger(__name__)

BIDS_SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+|BraTS-[A-Za-z]+-\d+(?=-\d{3}))")
"""A subject of BIDS in a path, or a patient of BraTS, who may have several timepoints."""

TIDY = re.compile(r"/?[^/.:\\][^/:\\]*(?:/[^/.:\\][^/:\\]*)*")
"""A path that pathlib would not change."""

_BATCH = 256  # DICOM files whose headers are read and kept together
_MANY = 2_000  # DICOM files; to read the headers of more takes seconds
_UNREADABLE = (
    ".gif",
    ".webp",
    ".jp2",
    ".svs",
    ".mnc",
    ".mat",
    ".npy",
    ".npz",
    ".h5",
    ".avi",
    ".mp4",
    ".zip",
    ".tar",
)


@dataclass(frozen=True)
class FolderContent:
    """What a folder holds."""

    # its cases, sorted by name; ids are given by their sequences, and the patient by DICOM (a hash), or they are ""
    scans: list[Case]
    label_maps: list[str] = field(default_factory=list)  # names of the label maps that belong to no case
    notes: list[str] = field(default_factory=list)  # one line for each sequence that cannot be used
    # the number of image files whose format cannot be read, by suffix
    unreadable: Counter[str] = field(default_factory=Counter)

    def left_out(self) -> Iterator[str]:
        """One line each about masks, sequences and files that are left out, if there are any."""
        masks = sum(case.mask is not None for case in self.scans)
        if masks and (without := len(self.scans) - masks):
            yield f"{without} of {counted(len(self.scans), 'scan')} without a mask"
        if self.label_maps:
            why = "without a scan, or a second one of a scan" if masks else "without a scan"
            yield f"masks are left out ({why}): {len(self.label_maps)}, e.g. {self.label_maps[0]}"
        yield from self.notes
        if self.unreadable:
            suffixes = ", ".join(f"{count} {suffix}" for suffix, count in self.unreadable.most_common(3))
            yield f"files that cannot be read are left out: {suffixes}; convert them to .nii.gz or .png"


def search_folder(root: Path, headers: Path | None = None) -> FolderContent:
    """Find all scans in a folder and its subfolders: each DICOM series, radiograph and file, but not label maps.

    ``headers`` is a folder that keeps what was read of DICOM files, by all cores, so that a killed search resumes.
    """
    scans: list[Case] = []
    dicom_names: dict[str, list[str]] = {}
    unreadable: Counter[str] = Counter()
    visited: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=_warn, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        if (real_path := os.path.realpath(folder)) in visited:  # a link to a folder must not count its scans twice
            folders.clear()
            continue
        visited.add(real_path)
        suffixes = {f: scan_suffix(f) for f in sorted(files) if not f.startswith(".")}
        others = (Path(name).suffix.lower() for name, suffix in suffixes.items() if not suffix)
        unreadable.update(suffix for suffix in others if suffix in _UNREADABLE)
        place = os.fspath(Path(folder) / "_")[:-1]  # the paths of many files begin with it
        scans += [
            Case("", {"image": f"{place}{name}"}, "") for name, s in suffixes.items() if s and s not in dicom.SUFFIXES
        ]
        names = [n for n, s in suffixes.items() if s in ("", *dicom.SUFFIXES) and dicom.is_dicom(Path(f"{place}{n}"))]
        if names:
            dicom_names[os.fspath(Path(folder))] = names
    if headers is not None and dicom_names:
        _read_headers(dicom_names, headers)
    num_files = sum(map(len, dicom_names.values()))
    text = f"reading the headers of {num_files} DICOM files; list-scans does this once, with all cores"
    for folder in track([*dicom_names], text) if headers is None and num_files > _MANY else dicom_names:
        scans += _search_dicom(Path(folder), dicom_names[folder])
    names, relative = names_within((scan.path for scan in scans), root), relative_to(root)
    counts = Counter(names)
    named: dict[str, Case] = {}
    for name, scan in sorted(zip(names, scans, strict=True), key=lambda place: (place[0], place[1].path)):
        # a.png and a.nii.gz have the same name
        named[name if counts[name] == 1 else relative(scan.path)] = scan
    maps = find_label_maps(list(named))
    images = {name: scan for name, scan in named.items() if name not in maps}
    grouping = group_files(root, images, {name: named[name].path for name in named if name in maps})
    return FolderContent(grouping.cases, grouping.left_over, grouping.notes, unreadable)


def sequences_beside(file: Path) -> dict[str, PathLike]:
    """The sequences of the case that a file in a folder of scans belongs to, by name; none if it has one image."""
    cases = search_folder(file.parent).scans
    return next((case.sequences for case in cases if file in (split_channel(each)[0] for each in case.files)), {})


def relative_to(root: PathLike) -> Callable[[str], str]:
    """A function that gives the path of a file from a folder, with ``/``; it is fast for many files."""

    @cache
    def relative_folder(path: str) -> str:
        return os.path.relpath(path or os.curdir, root).replace(os.sep, "/")

    start = os.fspath(root) + os.sep

    def relative(path: str) -> str:
        if path.startswith(start) and TIDY.fullmatch(within := path[len(start) :]) and within[0] != "/":
            return within
        folder, separator, name = path.rpartition(os.sep)
        within = relative_folder(folder + separator)
        if within.endswith("..") or name in ("", os.curdir, os.pardir):
            return os.path.relpath(path, root).replace(os.sep, "/")
        return name if within == os.curdir else f"{within}/{name}"

    return relative


def names_within(files: Iterable[PathLike], root: PathLike) -> list[str]:
    """Scans' names: their paths within a folder, with ``/`` and without the suffix."""
    relative = relative_to(root)

    def name(file: PathLike) -> str:
        path, uid = dicom.split_text(file)
        place = relative(path)
        name = Path(path).name if place == os.curdir else place[: len(place) - len(scan_suffix(path))]
        return f"{name}/{dicom.hash_patient(uid)[:6]}" if uid else name

    return [*map(name, files)]


def short_names(names: Sequence[str]) -> list[str]:
    """Scans' names without their folders, if these are different; else the names as they are."""
    short = [name.rpartition("/")[2] for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _read_headers(folders: Mapping[str, Sequence[str]], kept_in: Path) -> None:
    """Read the headers of the DICOM files in folders, by all cores; a killed run resumes with what is kept."""
    changed = {folder: dicom.folder_time(folder) for folder in folders}
    batches = [(each, names[i : i + _BATCH]) for each, names in folders.items() for i in range(0, len(names), _BATCH)]
    states = [file_state([f"{folder}{os.sep}{name}" for name in names]) for folder, names in batches]
    ids = [digest(folder, state) for (folder, _), state in zip(batches, states, strict=True)]
    store = PartStore(kept_in, "DICOM headers", replace=True)
    workers = (os.cpu_count() or 1) if sum(map(len, folders.values())) > _MANY else 0
    items = dict(zip(ids, batches, strict=True))
    rows = streamed.resumed(items, _read_batch, store, workers, "reading the headers of", "group of DICOM files")
    identities: dict[str, list[dicom.Identity | None]] = defaultdict(list)
    for (folder, _), id in zip(batches, ids, strict=True):
        identities[folder] += [identity for identity, count in json.loads(rows[id]["identities"]) for _ in range(count)]
    for folder, names in folders.items():
        dicom.keep_series(folder, changed[folder], names, identities[folder])


def _read_batch(batch: tuple[str, Sequence[str]]) -> dict[str, str]:
    """The identities of some files of a folder as JSON, each with the number of files in a row that have it."""
    folder, names = batch
    identities = (dicom.read_identity(Path(folder, name)) for name in names)
    return {"identities": json.dumps([(identity, len([*equal])) for identity, equal in groupby(identities)])}


def _search_dicom(folder: Path, names: Collection[str]) -> Iterator[Case]:
    series = dicom.list_series(folder)
    for uid, s in series.items():
        if s.is_volume:
            path = os.fspath(folder) if len(series) == 1 else f"{folder}{dicom.SERIES}{uid}"
            yield Case("", {"image": path}, s.patient or "")
        else:
            yield from (Case("", {"image": os.fspath(file)}, s.patient or "") for file in s.files)
    unreadable = {*names}.difference(*(s.names for s in series.values()))
    yield from (Case("", {"image": os.fspath(folder / name)}, "") for name in sorted(unreadable))


def _warn(error: OSError) -> None:
    logger.warning("%s: this folder is skipped (%s)", Path(error.filename or "").name, error.strerror)


# -- label maps --------------------------------------------------------------------------------------------------------

_WORDS = (
    "dseg|probseg|seg|segmentation|segmentations|mask|masks|label|labels|labelmap|gt|groundtruth|aseg|wmparc|ribbon"
    r"|\S+\+aseg|filled|wm\S*|segm|roi"
)
_FILE = re.compile(rf"(?:(?P<image>.*[^_. -])[_. -]+)?(?P<word>{_WORDS})(?:[_-]?\d+)?", re.IGNORECASE)
_FINDING = re.compile(r"(.*[^_. -])[_. -]+(?:tumou?r|lesions?|annotation)(?:[_-]?\d+)?", re.IGNORECASE)
_FOLDERS = frozenset({*_WORDS.split("|"), "segs", "annotations", "ground_truth"})
_IMAGE_FOLDER = re.compile(
    r"image|img|scan|volume|picture|(?:t[12][a-z]*|flair|dwi|adc|cta?|mri?|pe?t)$", re.IGNORECASE
)


def find_label_maps(names: Sequence[str]) -> set[str]:
    """The label maps among the scans of a folder, by their paths within it; none if nothing else would be left."""
    # Their folder is named as labelsTr beside imagesTr, or masks beside images or scans; or their name ends in a word
    # such as _seg, _mask_1 or _dseg, and the scan that it belongs to is there: in the same folder, with exactly the
    # rest of the name in another one, or for BIDS of the same subject. A class may be called tumor, too, so p1_tumor is
    # a label map only beside p1.
    with_scans = {PurePath(folder) for folder in {name.rpartition("/")[0] for name in names}}
    folders = {parent for folder in with_scans for parent in (folder, *folder.parents)}
    label_folders = {folder for folder in with_scans if _is_label_folder(folder, folders, with_scans)}
    in_folders = {name for name in names if PurePath(name).parent in label_folders} if label_folders else set()
    others = [name for name in names if name not in in_folders]
    known = {*others}
    findings = {name for name in others if (match := _FINDING.fullmatch(name)) and match[1] in known}
    label_maps = in_folders | findings | set(_named_as_label_maps(others))
    return label_maps if len(label_maps) < len(names) else set()


def _is_label_folder(place: PurePath, folders: Collection[PurePath], with_scans: Collection[PurePath]) -> bool:
    for folder in [place, *place.parents][:-1]:
        word = folder.name.lower()
        if word.startswith("labels") and folder.parent / folder.name.replace("labels", "images", 1) in folders:
            return True
        beside = (other.name for other in folders if other.parent == folder.parent)
        if word in _FOLDERS and (folder.parent in with_scans or any(map(_IMAGE_FOLDER.match, beside))):
            return True
    return False


def _named_as_label_maps(names: Sequence[str]) -> Iterator[str]:
    matches = {name: match for name in names if (match := _FILE.fullmatch(name.rpartition("/")[2]))}
    if not matches:
        return
    by_folder: dict[str, list[str]] = defaultdict(list)
    for folder, _, stem in (name.rpartition("/") for name in names if name not in matches):
        by_folder[folder].append(stem)
    stems = {*chain.from_iterable(by_folder.values())}
    subjects = {*map(_subject, stems)} - {None}
    # the parts with which names begin, up to each separator; "" is one of them
    beginnings = {
        folder: {stem[: match.start()] for stem in stems for match in re.finditer(r"[_. -]+|$|^", stem)}
        for folder, stems in by_folder.items()
    }
    words = set()
    for name, match in matches.items():
        rest, folder = match["image"] or "", name.rpartition("/")[0]
        if rest in stems or _subject(rest) in subjects or rest in beginnings.get(folder, ()):
            words.add(match["word"])
    yield from (name for name, match in matches.items() if match["word"] in words)  # also those without their image


def _subject(name: str) -> str | None:
    match = BIDS_SUBJECT.match(name)
    return match[1] if match else None
