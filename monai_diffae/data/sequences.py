"""Sequences and masks: which files of a folder belong to one case, by their names, and which of them a model gets."""

import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from monai_diffae.data.cases import Case, spread
from monai_diffae.data.fingerprints import CHANNEL
from monai_diffae.data.formats import dicom, nifti
from monai_diffae.data.progress import Failure
from monai_diffae.data.scans import may_be_dicom, read_header, read_labels
from monai_diffae.errors import CohortError, ScanError, counted, shortened
from monai_diffae.policies import PathLike

logger = logging.getLogger(__name__)

_WORD = (
    r"t1(?:w|n|c|ce|gd|km|post|pre)?|t2(?:w|f|s|star)?|flair|pdw?|dwi|adc|swi|asl|bold|mr|mri|mra|ct|cta|pet|pt|us|dx|cr|mg"
    r"|axial|coronal|sagittal|b0|b\d{3,4}"
)
_IS_WORD = re.compile(_WORD, re.IGNORECASE)
_WORDS = re.compile(rf"(?:^|[-_. ])({_WORD})(?=$|[-_. ])", re.IGNORECASE)
_SUFFIX = re.compile(rf"((?:.*/)?([^/]*?[^-_ /]))[-_ ]+(\d{{4}}|(?:{_WORD})(?:[-_ ](?:{_WORD}))*)", re.IGNORECASE)
_IN_FOLDER = re.compile(rf"(?:(.*)/)?({_WORD})/(.*?)(?:[-_ ]\2)?", re.IGNORECASE)
_PREFIX = re.compile(rf"((?:.*/)?)({_WORD}(?:[-_ ](?:{_WORD}))*)[-_ ]+([^/]+)", re.IGNORECASE)
_BIDS = re.compile(r"(?:.*/)?(sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)((?:_[a-z]+-[A-Za-z0-9]+)*)_([A-Za-z0-9]+)")
_SPACE = re.compile(r"[-_. ]")
_LAST_SPACE = re.compile(r"[-_. ](?=[^-_. ]*$)")
_COUNTER = re.compile(r"\D*\d+\W*")
_RUN = re.compile(r"_run-[A-Za-z0-9]+")
# words that say nothing about a patient or a sequence
_KINDS = re.compile(r"[-_. ]*(?:0000$|image|img|imaging|scan|volume|seg[a-z]*|masks?|labels?)", re.IGNORECASE)
CLASS_WORDS = ("class", "grade", "label", "stage", "type", "kl", "birads", "bi-rads", "pirads", "score", "level")
"""Words before the number of a folder that holds a class, such as ``grade 2``."""

_MOST_NAMES = 20  # sequences of a case, or files in each patient's folder
_FEW_CHANNELS = 4  # that may be numbered, without names; more numbers are frames
_MOST_CLASSES = 32  # of a label map
_LOOKED_AT = 3  # files that tell whether a folder holds 4D files, or whether those of one name are masks
_OTHER_MASKS = re.compile(r"brain|head", re.IGNORECASE)  # used only if a case has no other mask

Place = tuple[str, str]
"""The case of a file, as a path in the folder, and its sequence."""


def are_modalities(words: Iterable[str]) -> bool:
    """Whether all words name sequences, modalities or planes."""
    return all(_IS_WORD.fullmatch(word) for word in words)


# -- the files of a folder ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grouping:
    """The cases of a folder, with the files of their sequences and their masks."""

    cases: list[Case]  # with ids, as paths in the folder, if they have sequences
    left_over: list[str]  # names of the label maps that belong to no case, or to one that has another mask
    notes: list[str]  # one line for each sequence that cannot be used or is taken as the mask


def group_files(root: Path, scans: Mapping[str, Case], label_maps: Mapping[str, str]) -> Grouping:
    """Make cases of the scans in a folder and the label maps beside them, all by their names in it."""
    channels, masks = _channel_names(root), dict(label_maps)
    has_numbers = channels and not _are_4d([scan.path for scan in scans.values()])
    places = _read_names(list(scans), num_channels=len(channels) if has_numbers else 0)
    unnamed = _unnamed_masks(scans, places)
    masks |= {name: scans[name].path for names in unnamed.values() for name in names}
    places = _without_common_words({name: place for name, place in places.items() if name not in masks})
    places |= _read_series({name: scan for name, scan in scans.items() if name not in {*masks, *places}})
    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    spellings: dict[str, str] = {}
    for name in scans:
        if name not in masks:
            stem, sequence = places.get(name, (name, ""))
            sequence = channels[int(sequence)] if sequence.isdecimal() and int(sequence) < len(channels) else sequence
            files[stem][spellings.setdefault(sequence.casefold(), sequence)].append(name)
    numbers = {sequence for each in files.values() for sequence in each if sequence.isdecimal()}
    are_channels = len(numbers) <= _FEW_CHANNELS and "0000" in numbers  # as nnU-Net counts them
    cases: dict[str, Case] = {}
    notes = [f"{name}: its voxels are few whole numbers, so it is the mask; if not, rename it" for name in unnamed]
    for stem, by_sequence in files.items():
        if len(by_sequence) > _MOST_NAMES or not (are_channels or numbers.isdisjoint(by_sequence)):
            names = [name for each in by_sequence.values() for name in each]  # frames of one patient
            cases |= {name: replace(scans[name], patient=scans[name].patient or stem) for name in names}
            continue
        for sequence, (first, *others) in by_sequence.items():
            if others:
                notes.append(f"{first} and {others[0]} are both {sequence} of {stem}, so neither is used; remove one")
        scan = scans[next(iter(by_sequence.values()))[0]]
        paths = {each or "image": scans[names[0]].path for each, names in by_sequence.items() if len(names) == 1}
        if [*by_sequence] == [""]:
            cases[stem] = scan
        elif paths:
            cases[stem] = with_sequences(replace(scan, id=root.name if stem == "." else stem), paths)
    cases = dict(zip(cases, with_channels([*cases.values()], channels), strict=True))
    owners = {}
    if masks:
        owners = _owners(masks, {stem: {stem, *chain.from_iterable(files[stem].values())} for stem in cases})
    chosen = {stem: min(names, key=lambda name: _mask_rank(name, cases[stem])) for stem, names in owners.items()}
    cases |= {stem: replace(cases[stem], mask=Path(masks[name])) for stem, name in chosen.items()}
    return Grouping([*cases.values()], [name for name in masks if name not in chosen.values()], notes)


def with_sequences(case: Case, files: Mapping[str, PathLike]) -> Case:
    """A case with these files as its sequences, all of which are channels of its image."""
    paths: dict[str, PathLike] = {name: os.fspath(dicom.series_path(Path(file))) for name, file in files.items()}
    images = tuple(paths.values())
    return replace(case, images={"image": images if len(images) > 1 else images[0]}, sequences=paths)


def _channel_names(root: Path) -> list[str]:
    """The names of channels in the ``dataset.json`` of nnU-Net or the Medical Segmentation Decathlon, if any."""
    for folder in (root, root.parent):
        with suppress(OSError, ValueError, AttributeError):
            return channel_names(json.loads((folder / "dataset.json").read_text(encoding="utf-8")))
    return []


def channel_names(dataset: Mapping[str, Any]) -> list[str]:
    """The names of channels that a ``dataset.json`` gives, in their order."""
    names = dataset.get("channel_names") or dataset.get("modality") or {}
    return [str(names[number]) for number in sorted(names, key=int)] if isinstance(names, dict) else []


def _read_names(names: Sequence[str], *, num_channels: int) -> dict[str, Place]:
    """The places of the files whose names follow a layout: BIDS, a sequence at an end, or equal names in folders."""
    places: dict[str, Place] = {}
    readers = (_read_bids, lambda rest: _read_suffixes(rest, num_channels), _read_sequence_folders, _read_folders)
    for read in (*readers, _read_prefixes):
        found = read([name for name in names if name not in places])
        if len(set(found.values())) > len({stem for stem, _ in found.values()}):  # a case has several sequences
            places |= found
    return places


def _read_bids(names: Sequence[str]) -> dict[str, Place]:
    matches = {name: match for name in names if (match := _BIDS.fullmatch(name))}
    short = {name: (m[1] + "".join(_RUN.findall(m[2])), m[3]) for name, m in matches.items()}
    counts = Counter(short.values())
    double = {sequence for (_, sequence), count in counts.items() if count > 1}  # told apart by entities such as acq
    return {
        name: (stem, f"{_RUN.sub('', matches[name][2])}_{sequence}".strip("_") if sequence in double else sequence)
        for name, (stem, sequence) in short.items()
    }


def _read_suffixes(names: Sequence[str], num_channels: int) -> dict[str, Place]:
    found = [m for name in names if (m := _SUFFIX.fullmatch(name)) and _WORDS.sub("", m[2])]
    places = {m[0]: (m[1], m[3]) for m in found if not m[3].isdecimal()}
    stems = {stem for stem, sequences in _by_case(places).items() if len(sequences) > 1}
    for name in set(names) - set(places):  # as p1_T1wks beside p1_T1w and p1_FLAIR
        for space in _SPACE.finditer(name):
            stem, rest = name[: space.start()], name[space.end() :]
            if stem in stems and not _COUNTER.fullmatch(rest):
                places[name] = stem, rest
    numbers = {m[0]: (m[1], m[3]) for m in found if m[3].isdecimal()}
    several = {stem: each for stem, each in _by_case(numbers).items() if len(each) > 1}
    # classes have many numbers and few names, as benign_0000 and malignant_0000
    are_cases = len(several) > 1 and (
        len(several) > max(map(len, several.values())) or all(re.search(r"\d", stem) for stem in several)
    )
    is_most = 2 * sum(map(len, several.values())) > len(names)
    are_listed = all(int(number) < num_channels for _, number in numbers.values())
    return places | (numbers if are_listed or (are_cases and is_most) else {})


def _read_sequence_folders(names: Sequence[str]) -> dict[str, Place]:
    """The places of files with equal names in the folders of sequences: ``T1/patient01`` or ``T1/patient01_T1``."""
    matches = [match for name in names if (match := _IN_FOLDER.fullmatch(name))]
    return {m[0]: (f"{m[1] or ''}/{m[3]}".strip("/"), m[2]) for m in matches}


def _read_folders(names: Sequence[str]) -> dict[str, Place]:
    """The places of files with equal names in the folders of patients, or with names of sequences in one folder."""
    paths = [PurePosixPath(name) for name in names]
    places = {
        str(p): (str(p.parent).removesuffix("/orig"), p.name.removeprefix(p.parent.name).strip("-_. ") or p.name)
        for p in paths
    }
    groups = _by_case(places)
    counts = Counter(sequence for sequences in groups.values() for sequence in sequences)
    are_same = len(groups) > 1 and len(set(map(frozenset, groups.values()))) == 1 and any(map(_WORDS.search, counts))
    are_equal = are_same or (len(groups) > len(counts) and 2 * min(counts.values(), default=0) > len(groups))
    # as images of a class are not
    are_named = all(are_modalities([sequence]) or not _COUNTER.fullmatch(sequence) for sequence in counts)
    are_classes = {re.sub(r"[-_ ]*\d+$", "", PurePosixPath(stem).name).lower() for stem in groups} <= {*CLASS_WORDS}
    if len(counts) <= _MOST_NAMES and are_equal and are_named and not are_classes:
        return places
    named = {stem for stem, sequences in groups.items() if _have_words(sequences) or "orig" in sequences}
    known = {sequence.casefold() for stem in named for sequence in groups[stem]}
    return {name: (stem, s) for name, (stem, s) in places.items() if stem in named or s.casefold() in known}


def _read_prefixes(names: Sequence[str]) -> dict[str, Place]:
    return {name: (match[1] + match[3], match[2]) for name in names if (match := _PREFIX.fullmatch(name))}


def _by_case(places: Mapping[str, Place]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for stem, sequence in places.values():
        groups[stem].append(sequence)
    return groups


def _have_words(names: Sequence[str]) -> bool:
    """Whether at least two files of a folder are named after sequences, no two after the same, and else are equal."""
    rests = {name: _WORDS.sub("", name) for name in names if _WORDS.search(name)}
    if len(bare := [name for name, rest in rests.items() if not rest]) < 2:  # T1_lesion may be beside T1 and FLAIR
        bare = [*rests] if len({*rests.values()}) == 1 else []
    return 1 < len(bare) == len({(*sorted(_WORDS.findall(name.lower())),) for name in bare})


def _without_common_words(places: dict[str, Place]) -> dict[str, Place]:
    """The places with short names of sequences: without words at their ends that all have, or that mean an image."""
    parts = {sequence: _LAST_SPACE.split(sequence) for _, sequence in places.values()}
    ends = {each[-1].lower() for each in parts.values()}
    if len(parts) > 1 and min(map(len, parts.values())) > 1 and (len(ends) == 1 or all(map(_KINDS.fullmatch, ends))):
        return _without_common_words({name: (stem, parts[sequence][0]) for name, (stem, sequence) in places.items()})
    return places


def _unnamed_masks(scans: Mapping[str, Case], places: Mapping[str, Place]) -> dict[str, list[str]]:
    """The label maps among the files beside named sequences, by their names as such: voxels are few whole numbers."""
    files: dict[str, list[str]] = defaultdict(list)
    for name, (_, sequence) in places.items():
        files[sequence].append(name)
    masks = {}
    for sequence, names in files.items():
        if _WORDS.sub("", sequence) and not sequence.isdecimal() and not all(map(_BIDS.fullmatch, names)):
            found = {_is_label_map(scans[names[i]].first_file) for i in spread(len(names), _LOOKED_AT)}
            if True in found and False not in found:
                masks[sequence] = names
    return masks if len(masks) < len(files) else {}


def _is_label_map(file: Path) -> bool | None:
    """Whether a file is a label map; None if it is empty or full, which tells nothing."""
    with suppress(ScanError):
        values, counts = np.unique(read_labels(file).array, return_counts=True)
        is_label_map = len(values) <= _MOST_CLASSES and values[0] == 0 and 2 * counts[0] > counts.sum()
        return bool(is_label_map) if len(values) > 1 else None
    return False


def _read_series(scans: Mapping[str, Case]) -> dict[str, Place]:
    """The places of DICOM volumes whose description is theirs alone: the study's first series, and the description."""
    described = {}
    for name, scan in scans.items():
        series = dicom.find_series(scan.first_file) if may_be_dicom(scan.path) else None
        if series and series.study and series.description:
            described[name] = (series.patient, series.study), series.description
    counts = Counter(described.values())
    once = {name: place for name, place in described.items() if counts[place] == 1}  # others are repeated, and scans
    studies = Counter(study for study, _ in once.values())
    first: dict[Any, str] = {}
    return {
        name: (first.setdefault(study, name), sequence)
        for name, (study, sequence) in once.items()
        if studies[study] > 1
    }


def with_channels(cases: Sequence[Case], names: Sequence[str] = ()) -> list[Case]:
    """The cases with the channels of 4D files as sequences; a few headers tell whether there are such files."""
    files = [None if case.sequences or isinstance(case.images["image"], tuple) else case.path for case in cases]
    if len(names) < 2 and not _are_4d([file for file in files if file]):
        return list(cases)
    return [
        case if file is None else _with_channels(case, file, names) for case, file in zip(cases, files, strict=True)
    ]


def _are_4d(files: Sequence[str]) -> bool:
    images = [file for file in files if file.lower().endswith(nifti.SUFFIXES)]
    return any(_num_channels(images[i]) > 1 for i in spread(len(images), _LOOKED_AT))


def _with_channels(case: Case, file: str, names: Sequence[str]) -> Case:
    count = _num_channels(file)
    names = names if len(names) == count else [f"channel{k}" for k in range(count)]
    channels = {name: f"{file}{CHANNEL}{k}" for k, name in enumerate(names)}
    return with_sequences(case, channels) if count > 1 else case


def _num_channels(file: str) -> int:
    with suppress(ScanError):
        return (CHANNEL not in file and read_header(file).channels) or 1
    return 1


def _owners(masks: Mapping[str, str], names: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """The label maps of each case, by its names: one in its folder, named after it, or of the same subject."""
    by_key: dict[str, set[str]] = defaultdict(set)
    for stem, files in names.items():
        for file in files:
            path = PurePosixPath(file)
            subject = _BIDS.fullmatch(file)
            of_folder = [f"in:{path.parent}"] if path.parent.name or stem == "." else []
            of_subject = [f"bids:{subject[1]}"] if subject else []
            for key in {path.name, str(path), str(path.parent / _KINDS.sub("", path.name)), *of_subject, *of_folder}:
                by_key[key].add(stem)
    owners: dict[str, list[str]] = defaultdict(list)
    for mask in masks:
        path = PurePosixPath(mask)
        parts = [path.name, *(path.name[: m.start()] for m in reversed([*re.finditer(r"[_. -]+", path.name)]))]
        parts += [_KINDS.sub("", path.name)]  # 1001 of 1001_label, as of 1001_image
        image_folder = PurePosixPath(*(part.replace("labels", "images") for part in path.parent.parts))
        subject = _BIDS.fullmatch(mask)
        candidates = [
            *(str(folder / part) for part in parts for folder in (path.parent, image_folder)),
            *parts,
            *([f"bids:{subject[1]}"] if subject else ()),
            f"in:{path.parent}",
        ]
        if own := next((key for key in candidates if len(by_key.get(key, ())) == 1), None):
            owners[min(by_key[own])].append(mask)
    return owners


def _mask_rank(name: str, case: Case) -> tuple[bool, bool, str]:
    """Which of the masks of a case comes first: not that of the brain, and that of its first sequence or file."""
    short, first = PurePosixPath(name).name, next(iter(case.sequences), case.file.partition(".")[0])
    return bool(_OTHER_MASKS.search(short)), not short.lower().startswith(first.lower()), name


# -- the sequences of a model ------------------------------------------------------------------------------------------


def count_sequences(cases: Sequence[Case]) -> dict[str, int]:
    """The number of cases that have each sequence."""
    return dict(Counter(name for case in cases for name in case.sequences))


def usual_sequences(cases: Sequence[Case]) -> list[str]:
    """The sequences that a model gets if none are chosen: ``image``, or all of them if every case has them.

    Raises:
        CohortError: some cases lack some of them, so that the user has to choose.
    """
    counts = count_sequences(cases)
    if "image" in counts or not counts:
        return ["image"] if counts else []
    if set(counts.values()) == {len(cases)}:
        return list(counts)
    example = max(counts, key=lambda name: counts[name])
    raise CohortError(f"sequences: choose one or more of {_listed(counts)}, e.g. --sequences {example!r}")


def choose_sequences(
    cases: Sequence[Case], sequences: Sequence[str] = (), key: str = "image"
) -> tuple[list[Case], list[Failure]]:
    """The cases with these sequences as channels of the image ``key``, in this order; those that lack one are failures.

    Raises:
        CohortError: no case has such a sequence; one is given twice; or none are given, and the user has to choose.
    """
    counts = count_sequences(cases)
    sequences = sequences or usual_sequences(cases)
    by_name = {name.casefold(): name for name in counts}
    names = [by_name.get(name.casefold(), name) for name in sequences]
    if not counts and len(names) <= 1:
        if names and names != ["image"]:
            logger.warning("the scans have no names of sequences, so each one is taken for %s", names[0])
        return list(cases), []
    if unknown := next((name for name in names if name not in counts), None):
        advice = "in a table, the column of a sequence has its name"
        raise CohortError(f"sequences: no case has {unknown}, but {_listed(counts) or 'one image'}; {advice}")
    if double := next((name for name in names if names.count(name) > 1), None):
        raise CohortError(f"sequences: {double} is given twice; give it once")
    chosen, failures = [], []
    for case in cases:
        if lacking := [name for name in names if name not in case.sequences]:
            failures.append(
                Failure(case.id, case.file, f"has no {lacking[0]}; add its file, or choose other sequences")
            )
            continue
        files = tuple(case.sequences[name] for name in names)
        chosen.append(replace(case, images={**case.images, key: files if len(files) > 1 else files[0]}))
    return chosen, failures


def _listed(counts: Mapping[str, int]) -> str:
    names = [f"{name} ({counted(count, 'case')})" for name, count in sorted(counts.items(), key=lambda item: -item[1])]
    return shortened(", ".join(names), 120)
