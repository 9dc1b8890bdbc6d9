"""Sequences and masks: which files of a folder belong to one case, by their names, and which of them a model gets."""

import json
import logging
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
from monai_diffae.data.formats import dicom, nifti
from monai_diffae.data.formats.scan import CHANNEL
from monai_diffae.data.progress import Failure
from monai_diffae.data.scans import may_be_dicom, read_header, read_scan
from monai_diffae.errors import CohortError, ScanError, counted, shortened

logger = logging.getLogger(__name__)

_WORD = (
    r"t1(?:w|n|c|ce|gd|km|post|pre)?|t2(?:w|f|s|star)?|flair|pdw?|dwi|adc|swi|asl|bold|mr|mri|mra|ct|cta|pet|us|dx|cr|mg"
    r"|axial|coronal|sagittal"
)
_IS_WORD = re.compile(_WORD, re.IGNORECASE)
_SUFFIX = re.compile(rf"(.*[^-_/])[-_](\d{{4}}|{_WORD})", re.IGNORECASE)
_BIDS = re.compile(r"(?:.*/)?(sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)((?:_[a-z]+-[A-Za-z0-9]+)*)_([A-Za-z0-9]+)")
_RUN = re.compile(r"_run-[A-Za-z0-9]+")
_IMAGE_WORDS = frozenset({"image", "img", "scan", "volume"})  # which say nothing about a sequence
_MOST_NAMES = 12  # sequences of a case, or files in each patient's folder
_MOST_CLASSES = 32  # of a label map
_LOOKED_AT = 3  # files whose headers tell whether a folder holds 4D files
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
    notes: list[str]  # one line for each sequence that cannot be used


def group_files(root: Path, scans: Mapping[str, Case], label_maps: Mapping[str, Path]) -> Grouping:
    """Make cases of the scans in a folder and the label maps beside them, all by their names in it."""
    channels, masks = _channel_names(root), dict(label_maps)
    places = _read_names(list(scans), has_channels=len(channels) > 1)
    masks |= _unnamed_masks(scans, places)
    places = _without_common_words({name: place for name, place in places.items() if name not in masks})
    places |= _read_series({name: scan for name, scan in scans.items() if name not in {*masks, *places}})
    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    spellings: dict[str, str] = {}
    for name in scans:
        if name not in masks:
            stem, sequence = places.get(name, (name, ""))
            sequence = channels[int(sequence)] if sequence.isdecimal() and int(sequence) < len(channels) else sequence
            files[stem][spellings.setdefault(sequence.casefold(), sequence)].append(name)
    cases: dict[str, Case] = {}
    notes = []
    for stem, by_sequence in files.items():
        if len(by_sequence) > _MOST_NAMES:  # frames of one patient
            names = [name for each in by_sequence.values() for name in each]
            cases |= {name: replace(scans[name], patient=scans[name].patient or stem) for name in names}
            continue
        for sequence, (first, *others) in by_sequence.items():
            if others:
                notes.append(f"{first} and {others[0]} are both {sequence} of {stem}, so neither is used; remove one")
        scan = scans[next(iter(by_sequence.values()))[0]]
        paths = {each: scans[names[0]].first_file for each, names in by_sequence.items() if len(names) == 1}
        if "" in paths:
            cases[stem] = scan
        elif paths:
            cases[stem] = with_sequences(replace(scan, id=root.name if stem == "." else stem), paths)
    cases = dict(zip(cases, with_channels([*cases.values()], channels), strict=True))
    names_of = {stem: {stem, *chain.from_iterable(files[stem].values())} for stem in cases}
    owners = _owners(masks, names_of)
    chosen = {stem: min(names, key=lambda name: _mask_rank(name, cases[stem])) for stem, names in owners.items()}
    cases |= {stem: replace(cases[stem], mask=masks[name]) for stem, name in chosen.items()}
    return Grouping([*cases.values()], [name for name in masks if name not in chosen.values()], notes)


def with_sequences(case: Case, files: Mapping[str, Path]) -> Case:
    """A case with these files as its sequences, all of which are channels of its image."""
    paths = {name: dicom.series_path(file) for name, file in files.items()}
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


def _read_names(names: Sequence[str], *, has_channels: bool) -> dict[str, Place]:
    """The places of the files whose names follow a layout: BIDS, a sequence at the end, or equal names in folders."""
    for places in (_read_bids(names), _read_suffixes(names, has_channels=has_channels), _read_folders(names)):
        if len(set(places.values())) > len({stem for stem, _ in places.values()}):  # a case has several sequences
            return places
    return {}


def _read_bids(names: Sequence[str]) -> dict[str, Place]:
    matches = {name: match for name in names if (match := _BIDS.fullmatch(name))}
    short = {name: (m[1] + "".join(_RUN.findall(m[2])), m[3]) for name, m in matches.items()}
    counts = Counter(short.values())
    double = {sequence for (_, sequence), count in counts.items() if count > 1}  # told apart by entities such as acq
    return {
        name: (stem, f"{_RUN.sub('', matches[name][2])}_{sequence}".strip("_") if sequence in double else sequence)
        for name, (stem, sequence) in short.items()
    }


def _read_suffixes(names: Sequence[str], *, has_channels: bool) -> dict[str, Place]:
    places = {name: (match[1], match[2]) for name in names if (match := _SUFFIX.fullmatch(name))}
    groups = _by_case(places)
    several = {stem: sequences for stem, sequences in groups.items() if len(sequences) > 1}
    numbers = {sequence for sequences in several.values() for sequence in sequences if sequence.isdecimal()}
    # nnU-Net's channels begin at 0000; classes have many numbers and few names, as benign_0000 and malignant_0000
    are_cases = has_channels or len(several) > len(numbers) or all(re.search(r"\d", stem) for stem in several)
    are_many = 2 * sum(map(len, several.values())) > len(names) and (len(several) > 1 or not numbers or has_channels)
    return places if are_cases and are_many else {}


def _read_folders(names: Sequence[str]) -> dict[str, Place]:
    """The places of files with equal names in the folders of patients, or with names of sequences in one folder."""
    paths = {name: PurePosixPath(name) for name in names}
    places = {name: (str(path.parent), path.name) for name, path in paths.items()}
    groups = _by_case(places)
    counts = Counter(sequence for sequences in groups.values() for sequence in sequences)
    are_equal = len(groups) > len(counts) and 2 * min(counts.values(), default=0) > len(groups)
    are_named = all(not re.fullmatch(r"\D*\d+", sequence) for sequence in counts)  # not numbered, as images of a class
    if len(counts) <= _MOST_NAMES and ((are_equal and are_named) or all(map(_have_words, groups.values()))):
        return places
    return {}


def _by_case(places: Mapping[str, Place]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for stem, sequence in places.values():
        groups[stem].append(sequence)
    return groups


def _have_words(names: Sequence[str]) -> bool:
    """Whether at least two files of a folder are named after sequences, and no two after the same ones."""
    words = [key for name in names if (key := frozenset(_words(name)))]
    return len(words) > 1 and len(set(words)) == len(words)


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[-_. ]", name) if _IS_WORD.fullmatch(word)]


def _without_common_words(places: dict[str, Place]) -> dict[str, Place]:
    """The places with short names of sequences: without words at their ends that all have, or that mean an image."""
    words = {sequence: re.split(r"[-_. ]", sequence) for _, sequence in places.values()}
    while len(words) > 1 and all(len(each) > 1 for each in words.values()):
        ends = {each[-1].lower() for each in words.values()}
        if len(ends) > 1 and not ends <= _IMAGE_WORDS:
            break
        words = {sequence: each[:-1] for sequence, each in words.items()}
    short = {sequence: sequence[: len("_".join(each))] for sequence, each in words.items()}
    return {name: (stem, short[sequence]) for name, (stem, sequence) in places.items()}


def _unnamed_masks(scans: Mapping[str, Case], places: Mapping[str, Place]) -> dict[str, Path]:
    """The label maps among the files beside named sequences: those whose voxels are few whole numbers."""
    sequences = {sequence for _, sequence in places.values()}
    unnamed = {s: name for name, (_, s) in places.items() if not (_words(s) or s.isdecimal() or _BIDS.fullmatch(name))}
    masks = {sequence for sequence, name in unnamed.items() if _is_label_map(scans[name].first_file)}
    return {name: scans[name].first_file for name, (_, s) in places.items() if s in masks} if masks < sequences else {}


def _is_label_map(file: Path) -> bool:
    with suppress(ScanError):
        values, counts = np.unique(read_scan(file).array, return_counts=True)
        is_few = len(values) <= _MOST_CLASSES and bool((values == np.round(values)).all())
        return is_few and values[0] == 0 and 2 * counts[0] > counts.sum()
    return False


def _read_series(scans: Mapping[str, Case]) -> dict[str, Place]:
    """The places of DICOM volumes with a description: the first series of the patient's study, and the description."""
    described = {}
    for name, scan in scans.items():
        series = dicom.find_series(scan.first_file) if may_be_dicom(scan.first_file) else None
        if series and series.study and series.description:
            described[name] = (series.patient, series.study), series.description
    studies = Counter(study for study, _ in described.values())
    first: dict[Any, str] = {}
    return {
        name: (first.setdefault(study, name), sequence)
        for name, (study, sequence) in described.items()
        if studies[study] > 1
    }


def with_channels(cases: Sequence[Case], names: Sequence[str] = ()) -> list[Case]:
    """The cases with the channels of 4D files as sequences; a few headers tell whether there are such files."""
    files = [
        None if case.sequences or not isinstance(case.images["image"], Path) else case.first_file for case in cases
    ]
    images = [file for file in files if file and file.name.lower().endswith(nifti.SUFFIXES)]
    if len(names) < 2 and not any(_num_channels(images[i]) > 1 for i in spread(len(images), _LOOKED_AT)):
        return list(cases)
    return [
        case if file is None else _with_channels(case, file, names) for case, file in zip(cases, files, strict=True)
    ]


def _with_channels(case: Case, file: Path, names: Sequence[str]) -> Case:
    count = _num_channels(file)
    names = names if len(names) == count else [f"channel{k}" for k in range(count)]
    channels = {name: Path(f"{file}{CHANNEL}{k}") for k, name in enumerate(names)}
    return with_sequences(case, channels) if count > 1 else case


def _num_channels(file: Path) -> int:
    with suppress(ScanError):
        return (CHANNEL not in file.name and read_header(file).channels) or 1
    return 1


def _owners(masks: Mapping[str, Path], names: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """The label maps of each case, by its names: one in its folder, named after it, or of the same subject."""
    by_key: dict[str, set[str]] = defaultdict(set)
    for stem, files in names.items():
        for file in files:
            path = PurePosixPath(file)
            subject = _BIDS.fullmatch(file)
            of_folder = [f"in:{path.parent}"] if stem == str(path.parent) else []
            for key in {path.name, str(path), *([f"bids:{subject[1]}"] if subject else ()), *of_folder}:
                by_key[key].add(stem)
    owners: dict[str, list[str]] = defaultdict(list)
    for mask in masks:
        path = PurePosixPath(mask)
        parts = [path.name, *(path.name[: m.start()] for m in reversed([*re.finditer(r"[_. -]+", path.name)]))]
        image_folder = PurePosixPath(*(part.replace("labels", "images") for part in path.parent.parts))
        subject = _BIDS.fullmatch(mask)
        candidates = [
            f"in:{path.parent}", *(str(folder / part) for part in parts for folder in (path.parent, image_folder)),
            *parts, *([f"bids:{subject[1]}"] if subject else ()),
        ]  # fmt: skip
        if key := next((key for key in candidates if len(by_key.get(key, ())) == 1), None):
            owners[min(by_key[key])].append(mask)
    return owners


def _mask_rank(name: str, case: Case) -> tuple[bool, bool, str]:
    """Which of the masks of a case comes first: not that of the brain, and that of its first sequence."""
    short, first = PurePosixPath(name).name, next(iter(case.sequences), "")
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
        CohortError: no case has such a sequence; or none are named, and the user has to choose.
    """
    counts = count_sequences(cases)
    sequences = sequences or usual_sequences(cases)
    by_name = {name.casefold(): name for name in counts}
    names = [by_name.get(name.casefold(), name) for name in sequences]
    if unknown := next((name for name in names if name not in counts and counts), None):
        raise CohortError(f"sequences: no case has {unknown}; it is one of {_listed(counts)}")
    if not counts:
        return list(cases), []
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
