"""Find twins: scans that are identical, or nearly so (saved again, resized, slightly cropped, brighter)."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from monai_diffae.data.cases import Case
from monai_diffae.data.fingerprints import Fingerprint, Thumbnail, aligned_correlation, details

logger = logging.getLogger(__name__)

MOST_COMPARED = 20_000  # of more scans, only identical ones are found: each is compared with each
_BLOCK = 1024
_SAMPLE = 2000  # scans that show how alike scans of this cohort are
_USUAL_PERCENTILE = 95.0
_CLOSER = 9.0  # twins are this many times closer to 1 than the 95th percentile of all correlations ...
_LEAST, _MOST = 0.93, 0.985  # ... and at least this correlated, whatever the cohort; more is never needed
_CANDIDATES = 3.3  # before alignment, twins may be this many times less close to 1
_PARTNERS = 3  # candidates for the twin of a scan


@dataclass(frozen=True)
class TwinGroup:
    """Positions of scans, ascending, of which each is a twin of another; identical if all have the same voxels."""

    members: tuple[int, ...]
    is_identical: bool


def find_twins(fingerprints: Sequence[Fingerprint], patients: Sequence[str]) -> list[TwinGroup]:
    """Find groups of identical or nearly identical scans.

    Scans of one kind are alike: the thumbnails of two patients' chest X-rays correlate with up to .97. So their coarse
    content is removed first, and near twins must correlate much more closely than is usual in the cohort, after a
    small shift and stretch. Crops of up to 2 % on each side are found; mirrored scans are not.

    Near twins are sought among different patients only, as two scans of one patient are expected to be alike. The
    groups are in the order of their first members.

    Example:
        >>> from monai_diffae.data.fingerprints import fingerprint
        >>> scans = np.random.default_rng(0).random((10, 1, 64, 64), np.float32)
        >>> fingerprints = [fingerprint(scan) for scan in [*scans, scans[2], 0.5 * scans[7] + 0.1]]
        >>> find_twins(fingerprints, [*"abcdefghijkl"])
        [TwinGroup(members=(2, 10), is_identical=True), TwinGroup(members=(7, 11), is_identical=False)]
    """
    firsts: dict[bytes, int] = {}
    original = [firsts.setdefault(each.digest, position) for position, each in enumerate(fingerprints)]
    links = [pair for pair in enumerate(original) if pair[0] != pair[1] and fingerprints[pair[1]].thumbnail is not None]
    links += _near_pairs({position: fingerprints[position] for position in firsts.values()}, patients)
    return linked_groups(links, original)


def find_twins_among(cases: Sequence[Case], fingerprints: Mapping[int, Fingerprint]) -> list[TwinGroup]:
    """Find twins among those cases whose scans could be read, as positions of ``cases``; see :func:`find_twins`."""
    positions = [*fingerprints]
    groups = find_twins([*fingerprints.values()], [cases[position].patient for position in positions])
    return [replace(group, members=tuple(positions[member] for member in group.members)) for group in groups]


def linked_groups(pairs: Sequence[tuple[int, int]], identity: Sequence[Hashable]) -> list[TwinGroup]:
    """The groups into which pairs of positions link N scans; identical scans share a value of ``identity``.

    Example:
        >>> linked_groups([(0, 2), (2, 3)], "abcd")
        [TwinGroup(members=(0, 2, 3), is_identical=False)]
    """
    if not pairs:
        return []
    ones, (rows, columns) = np.ones(len(pairs)), np.array(pairs).T
    _, groups = connected_components(coo_array((ones, (rows, columns)), shape=(len(identity),) * 2), directed=False)
    members: dict[int, list[int]] = {}
    for position, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(position)
    return [
        TwinGroup(tuple(positions), len({identity[position] for position in positions}) == 1)
        for positions in members.values()
        if len(positions) > 1
    ]


def merge_patients(patients: Sequence[str], groups: Sequence[TwinGroup]) -> list[str]:
    """The patients of N scans, with one name for all patients whose scans are linked by twins.

    Example:
        >>> merge_patients(["p", "q", "q", "r"], [TwinGroup((0, 1), is_identical=True)])
        ['p', 'p', 'p', 'r']
    """
    first = {patient: patient for patient in patients}

    def merged(patient: str) -> str:
        while first[patient] != patient:
            patient = first[patient]
        return patient

    for group in groups:
        names = [merged(patients[position]) for position in group.members]
        first.update(dict.fromkeys(names, names[0]))
    return [merged(patient) for patient in patients]


def _near_pairs(fingerprints: Mapping[int, Fingerprint], patients: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of near twins of different patients, among scans that all differ."""
    by_kind: dict[int, dict[int, Thumbnail]] = {1: {}, 3: {}}  # pictures, and volumes
    for position, each in fingerprints.items():
        if each.thumbnail is not None:
            by_kind[len(each.thumbnail)][position] = each.thumbnail
    pairs: list[tuple[int, int]] = []
    for thumbnails in by_kind.values():
        if len(thumbnails) > MOST_COMPARED:
            logger.info("%d scans are too many to compare all: only identical twins are found", len(thumbnails))
        elif len(thumbnails) > 1:
            pairs += _near_pairs_of_kind(thumbnails, patients)
    return pairs


def _near_pairs_of_kind(thumbnails: Mapping[int, Thumbnail], patients: Sequence[str]) -> Iterator[tuple[int, int]]:
    positions = [*thumbnails]
    fine = np.stack([details(thumbnail) for thumbnail in thumbnails.values()]).astype(np.float32)
    _, codes = np.unique([patients[position] for position in positions], return_inverse=True)
    limit = _limit(fine)
    for first, second, correlation in _candidates(fine, codes, 1 - _CANDIDATES * (1 - limit)):
        i, j = positions[first], positions[second]
        if correlation >= limit or aligned_correlation(thumbnails[i], thumbnails[j]) >= limit:
            yield i, j


def _limit(fine: NDArray[np.float32]) -> float:
    """The correlation from which two scans count as twins in a cohort with these details ``[N, D]``."""
    sample = fine[:: -(-len(fine) // _SAMPLE)]
    pairs = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    usual = float(np.percentile(pairs, _USUAL_PERCENTILE)) if len(pairs) else 0.0
    return min(max(1 - (1 - usual) / _CLOSER, _LEAST), _MOST)


def _candidates(
    fine: NDArray[np.float32], patients: NDArray[np.intp], least: float
) -> Iterator[tuple[int, int, float]]:
    """The closest pairs of rows of ``[N, D]``, of different patients, that correlate with at least ``least``."""
    for start in range(0, len(fine), _BLOCK):
        block = slice(start, start + _BLOCK)
        correlations = np.triu(fine[block] @ fine[start:].T, 1)
        correlations[patients[block, None] == patients[start:]] = 0
        for row in np.flatnonzero((correlations >= least).any(axis=1)):
            for column in np.argsort(-correlations[row])[:_PARTNERS]:
                if correlations[row, column] >= least:
                    yield start + int(row), start + int(column), float(correlations[row, column])
