"""Twins: scans that occur twice in a cohort, as they are, or saved again, resized, brighter or slightly cropped."""

import logging
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_diffae.data.cases import TWINS, Case, Images, Label, are_patients_known, label_names, marks_twins
from monai_diffae.data.fingerprints import digest
from monai_diffae.data.formats.axes import to_ras
from monai_diffae.data.formats.scan import Floats, Scan, Voxels
from monai_diffae.errors import CohortError, counted, quoted

logger = logging.getLogger(__name__)

SIZE = 32  # rows and columns of a thumbnail
_WINDOW = 7  # pixels of a thumbnail over which its coarse content is averaged
_FLAT = 1e-6  # least standard deviation of a thumbnail, in units of its range
_LEAST_CORRELATION = 0.94  # of the details of twins; those of two patients reach .933: heads and slices of heads
_MOST_COMPARED = 20_000  # among more scans, only identical ones are found
_BLOCK = 1024

ADVICE = "monai-diffae list-scans --group-duplicates gives twins one patient, so that no split separates them"
_EXAMPLES = 5
_MOST_CLASSES = 20

Thumbnail = NDArray[np.float32]
"""``[P, 32, 32]`` in 0..1: a picture, or the middle planes of a volume across each of its axes."""


@dataclass(frozen=True, eq=False)
class ScanPrint:
    """What is kept of a scan to compare it with others."""

    digest: str  # SHA-256 of the voxels and the size
    thumbnail: Thumbnail | None  # a small version; None if it shows nothing, such as an empty slice


@dataclass(frozen=True)
class TwinGroup:
    """Positions of scans, ascending, of which each is a twin of another; identical if all have the same voxels."""

    members: tuple[int, ...]
    is_identical: bool


def scan_print(scan: Scan) -> ScanPrint:
    """The print of a scan, whatever the order of a volume's voxels in its file."""
    array = scan.array if scan.spatial_dims == 2 else to_ras(scan).array
    return ScanPrint(digest(repr(array.shape), array.astype("<f4")), _thumbnail(array))


def find_twins(prints: Mapping[int, ScanPrint], patients: Sequence[str]) -> list[TwinGroup]:
    """Groups of identical scans, and of different patients' scans whose thumbnails' details correlate."""
    firsts: dict[str, int] = {}
    pairs = [(firsts.setdefault(each.digest, position), position) for position, each in prints.items()]
    pairs = [pair for pair in pairs if pair[0] != pair[1] and prints[pair[1]].thumbnail is not None]
    for planes in (1, 3):  # pictures, and volumes
        thumbnails = {position: prints[position].thumbnail for position in firsts.values()}
        pairs += _similar_pairs({k: t for k, t in thumbnails.items() if t is not None and len(t) == planes}, patients)
    identity = {position: each.digest for position, each in prints.items()}
    return linked_groups(pairs, [identity.get(position) for position in range(len(patients))])


def find_identical(cases: Sequence[Case], contents: Sequence[str]) -> list[TwinGroup]:
    """Groups of cases with the same files, by the hashes of their contents; of a volume, the first slice counts."""
    groups: dict[str, dict[tuple[tuple[str, Images], ...], int]] = {}
    for position, (case, content) in enumerate(zip(cases, contents, strict=True)):
        if content:
            groups.setdefault(content, {}).setdefault(tuple(sorted(case.images.items())), position)
    return [TwinGroup(tuple(group.values()), is_identical=True) for group in groups.values() if len(group) > 1]


def linked_groups(pairs: Sequence[tuple[int, int]], identity: Sequence[Hashable]) -> list[TwinGroup]:
    """The groups into which pairs of positions link N scans; identical scans share a value of ``identity``."""
    root = list(range(len(identity)))  # of each position one before it in its group; in the end, the first of the group

    def first(position: int) -> int:
        while root[position] != position:
            root[position] = position = root[root[position]]
        return position

    for pair in pairs:
        low, high = sorted(map(first, pair))
        root[high] = low
    members: dict[int, list[int]] = {}
    for position in range(len(root)):
        members.setdefault(first(position), []).append(position)
    return [
        TwinGroup(tuple(positions), len({identity[position] for position in positions}) == 1)
        for positions in members.values()
        if len(positions) > 1
    ]


def merge_patients(patients: Sequence[str], groups: Sequence[TwinGroup]) -> list[str]:
    """The patients of N scans, with one name for all patients whose scans are linked by twins."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(patient, position), position) for position, patient in enumerate(patients)]
    pairs += [(group.members[0], member) for group in groups for member in group.members]
    merged = list(patients)
    for group in linked_groups(pairs, patients):
        for member in group.members:
            merged[member] = patients[group.members[0]]
    return merged


def _similar_pairs(thumbnails: Mapping[int, Thumbnail], patients: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Each scan with the one behind it that is most like it, if these are twins of different patients."""
    if len(thumbnails) > _MOST_COMPARED:
        logger.info("%d scans are too many to compare all: only identical twins are found", len(thumbnails))
        return
    if len(thumbnails) < 2:
        return
    positions = np.array([*thumbnails])
    details = np.stack([_details(thumbnail) for thumbnail in thumbnails.values()]).astype(np.float32)
    _, codes = np.unique([patients[position] for position in positions], return_inverse=True)
    for start in range(0, len(details), _BLOCK):
        block = slice(start, start + _BLOCK)
        correlations = np.triu(details[block] @ details[start:].T, 1)
        correlations[codes[block, None] == codes[start:]] = 0
        closest = correlations.argmax(axis=1)
        for row in np.flatnonzero(correlations.max(axis=1) >= _LEAST_CORRELATION):
            yield int(positions[start + row]), int(positions[start + closest[row]])


def _details(thumbnail: Thumbnail) -> Floats:
    """The fine content ``[P * 32 * 32]`` of a thumbnail, with norm 1."""
    from scipy.ndimage import uniform_filter

    fine = thumbnail - uniform_filter(thumbnail.astype(np.float64), (0, _WINDOW, _WINDOW))
    fine -= fine.mean()
    return (fine / max(float(np.linalg.norm(fine)), np.finfo(float).tiny)).ravel()


def _thumbnail(array: Voxels) -> Thumbnail | None:
    planes = [array]
    if array.ndim == 4:
        planes = [np.take(array, size // 2, axis=1 + axis) for axis, size in enumerate(array.shape[1:])]
    grey = [Image.fromarray(plane.mean(axis=0, dtype=np.float64).astype(np.float32)) for plane in planes]
    small = np.stack([np.asarray(each.resize((SIZE, SIZE), Image.Resampling.BOX)) for each in grey])
    low, high = float(small.min()), float(small.max())
    if not high > low:
        return None
    scaled: Thumbnail = ((small - low) / (high - low)).astype(np.float32)
    return scaled if np.std(scaled) > _FLAT else None


# -- what twins mean for a cohort --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """The ids of two twins, what differs between them, such as ``split`` or a label, and its two values."""

    ids: tuple[str, str]
    what: str
    values: tuple[Label, Label]

    def __str__(self) -> str:
        (first, second), (one, other) = self.ids, self.values
        return f"{first} ({self.what} {one}) and {second} ({self.what} {other})"

    def figures(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"ids": list(self.ids), "what": self.what, "values": list(self.values)}


@dataclass(frozen=True)
class TwinReport:
    """The twins of a cohort."""

    groups: list[list[str]]  # the ids of each group
    num_identical: int  # groups whose scans have the same voxels
    separated: list[Pair]  # one pair per group that is in several splits
    contradictory: list[Pair]  # one pair per group and label that its scans do not share
    other_patients: list[Pair]  # one pair per group with several patients
    is_grouped: bool = False  # whether twins count as one patient
    knows_patients: bool = True

    def lines(self) -> Iterator[str]:
        """Lines with counts, examples and advice; none if there are no twins."""
        if not self.groups:
            return
        scans = f"{sum(map(len, self.groups))} scans in {counted(len(self.groups), 'group')}"
        patients = f"{len(self.other_patients)} of different patients" if self.knows_patients else "patients unknown"
        kinds = f"{self.num_identical} identical, {patients}"
        examples = listed(" = ".join(ids[:3]) for ids in self.groups)
        yield f"twins: {scans} are identical or nearly so ({kinds}): {examples}"
        if self.other_patients and self.is_grouped:
            yield "twins count as one patient"
        elif self.other_patients and not self.separated:
            yield f"a random split may separate them; {ADVICE}"
        yield from self.problems()

    def problems(self) -> Iterator[str]:
        """Lines about twins in different splits and with different labels."""
        if self.separated:
            groups = f"{counted(len(self.separated), 'group')} of twins in different splits: {listed(self.separated)}"
            yield f"{groups}; correct the column split of the table; if it has none, {ADVICE}"
        yield from self.contradictions()

    def contradictions(self) -> Iterator[str]:
        """A line about twins with different labels, if there are any."""
        if self.contradictory:
            pairs = counted(len(self.contradictory), "pair")
            yield f"{pairs} of twins with different labels: {listed(self.contradictory)}; correct or remove them"

    def figures(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        return {
            "groups": self.groups,
            "num_identical": self.num_identical,
            "separated": [pair.figures() for pair in self.separated],
            "contradictory": [pair.figures() for pair in self.contradictory],
            "num_of_different_patients": len(self.other_patients),
        }


def report_twins(cases: Sequence[Case], groups: Sequence[TwinGroup]) -> TwinReport:
    """Report the twins among cases; labels with at most 20 different values, none a fraction, are compared."""
    classes = [name for name in label_names(cases) if are_classes([case.labels.get(name) for case in cases])]
    num_identical = sum(group.is_identical for group in groups)
    report = TwinReport([], num_identical, [], [], [], knows_patients=are_patients_known(cases))
    for group in groups:
        members = [cases[position] for position in group.members]
        report.groups.append([case.id for case in members])
        report.separated.extend(_differing(members, "split", [case.split for case in members]))
        report.other_patients.extend(_differing(members, "patient", [case.patient for case in members]))
        for name in classes:
            report.contradictory.extend(_differing(members, name, [case.labels.get(name) for case in members]))
    return report


def mark_twins(cases: Sequence[Case], groups: Sequence[TwinGroup]) -> list[Case]:
    """The cases with a column ``twins``, which is the same text for the twins of a group, such as ``group 1``."""
    for case in cases:
        former = case.labels.get(TWINS)
        if former is not None and not marks_twins(TWINS, [former]):
            raise CohortError(f"the column {TWINS} has a label, {quoted(str(former))}; rename it, or set skip_twins")
    names = {position: f"group {number}" for number, group in enumerate(groups, 1) for position in group.members}
    marks: list[dict[str, Label]] = [{TWINS: names.get(position)} if groups else {} for position in range(len(cases))]
    return [
        replace(case, labels={name: label for name, label in case.labels.items() if name != TWINS} | mark)
        for case, mark in zip(cases, marks, strict=True)
    ]


def group_twins(cases: Sequence[Case], groups: Sequence[TwinGroup]) -> list[Case]:
    """The cases with one patient for all twins of a group, and for all other scans of their patients."""
    separated = report_twins(cases, groups).separated
    if separated:
        raise SeparatedTwins(
            f"the column split separates twins, such as {separated[0]}, so they cannot become one patient; run "
            "monai-diffae list-scans without --group-duplicates, correct the column split in its table where the "
            "column twins has a group, and use that table"
        )
    patients = merge_patients([case.patient for case in cases], groups)
    return [replace(case, patient=patient) for case, patient in zip(cases, patients, strict=True)]


class SeparatedTwins(CohortError):
    """The column ``split`` puts twins into different splits, so they cannot become one patient."""


def are_classes(values: Sequence[Label]) -> bool:
    """Whether a label names classes, which twins should share, unlike a measurement or the name of a file."""
    different = {value for value in values if value is not None}
    has_fractions = any(isinstance(value, float) and not value.is_integer() for value in different)
    return len(different) <= min(_MOST_CLASSES, len(values) // 2 + 1) and not has_fractions


def _differing(cases: Sequence[Case], what: str, values: Sequence[Label]) -> list[Pair]:
    """The first pair with different known values, or none."""
    known = [(case.id, value) for case, value in zip(cases, values, strict=True) if value is not None]
    pairs = (Pair((a, b), what, (one, other)) for (a, one), (b, other) in combinations(known, 2) if one != other)
    return [*islice(pairs, 1)]


def listed(items: Iterable[object]) -> str:
    """The first five items as text, and the number of the others."""
    texts = [str(item) for item in items]
    return "; ".join(texts[:_EXAMPLES]) + (f"; and {len(texts) - _EXAMPLES} more" if len(texts) > _EXAMPLES else "")
