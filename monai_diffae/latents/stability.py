"""How far z_sem moves where the case stays the same, beside how far other cases are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import checked_codes

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]

_MOST_PAIRS = 500_000  # of their distances, drawn at random, the median is off by less than a thousandth
_PAIRS_AT_ONCE = 2**13
_DISTANCES_AT_ONCE = 2**20
_ROUNDING = 1e-10  # of squares of lengths, and more than any sum of products is off by


@dataclass(frozen=True)
class Stability:
    """What :func:`stability` measures.

    Attributes:
        ratio: the median distance between a case's two z_sem, over the median distance between different patients'.
            0: it does not move; 1: as far as to a stranger. The second median is over all pairs of cases where these
            are at most 500,000 (707 cases of as many patients), else over as many drawn by a fixed seed.
        ratio_90: the same of the 90th percentile of the first.
        rank_1: the share of cases whose z_sem, seen again, is nearer to their own than to any other patient's.
        num_cases: how many there are.
    """

    ratio: float
    ratio_90: float
    rank_1: float
    num_cases: int


def stability(
    z: ArrayLike,
    z_again: ArrayLike,
    patients: ArrayLike,
    scans: ArrayLike | None = None,
    slices: ArrayLike | None = None,
) -> Stability:
    """Compare the z_sem of cases with those of the same cases seen again.

    Args:
        z: ``[N, D]``, normalised.
        z_again: ``[N, D]``, as well: of the cases changed, or ``z`` once more where cases are compared with others.
        patients: ``[N]``, whose each case is. Cases of other patients are strangers.
        scans: ``[N]``, which scan each case is of. A case is then compared not with itself but with the other scans of
            its patient; the nearest counts, and cases of the same scan do not.
        slices: ``[N]``, which slice of the scan: only the same one of other scans counts. None: they are whole.

    Raises:
        ConfigError: other shapes, values that are not finite, no case with both its own and strangers, or z_sem that
            is the same for most patients.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(50, 8))
        >>> moved = stability(z, z + 0.01, patients=np.arange(50))
        >>> round(moved.ratio, 3), moved.rank_1
        (0.007, 1.0)
    """
    x = checked_codes(z, num_least=1).astype(np.float64)
    again = checked_codes(z_again, x.shape[1], num_least=1).astype(np.float64)
    given = [np.asarray(each) for each in (patients, scans, slices) if each is not None]
    if again.shape != x.shape or any(each.shape != (len(x),) for each in given):
        raise ConfigError("stability: z, z_again, patients, scans and slices must be of as many cases")
    patient = _numbered(patients)
    if scans is None:
        gone = np.linalg.norm(again - x, axis=1)
    else:
        group = patient if slices is None else _numbered(patient * len(x) + _numbered(slices))
        gone = _to_other_scans(x, again, group, _numbered(scans))
    judged = np.flatnonzero(np.isfinite(gone) & (patient.max() > 0))
    if not len(judged):
        raise ConfigError("stability: no case is seen again beside another patient's; give more cases")
    usual = _usual_distance(x, patient, judged)
    if usual == 0:
        raise ConfigError("stability: most patients have the same z_sem; train the encoder")
    is_nearest = _are_nearest(x, again, patient, judged, gone[judged])
    ratio, ratio_90 = np.percentile(gone[judged], [50, 90]) / usual
    return Stability(float(ratio), float(ratio_90), float(is_nearest.mean()), len(judged))


def _numbered(values: ArrayLike) -> Numbers:
    return np.unique(np.asarray(values), return_inverse=True)[1]


def _to_other_scans(x: Floats, again: Floats, group: Numbers, scan: Numbers) -> Floats:
    """How far (N,) each case is from the nearest of its group in another scan; infinite where there is none."""
    gone = np.full(len(x), np.inf)
    for members in np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1]):
        for i in members:
            others = members[scan[members] != scan[i]]
            if len(others):
                gone[i] = np.linalg.norm(x[others] - again[i], axis=1).min()
    return gone


def _usual_distance(x: Floats, patient: Numbers, judged: Numbers) -> float:
    """The median distance from judged cases to strangers: of all pairs, or of as many as are enough."""
    order, sizes = np.argsort(patient, kind="stable"), np.bincount(patient)
    starts = np.cumsum(sizes) - sizes
    ends = np.cumsum(len(x) - sizes[patient[judged]])  # in a list of all pairs, case by case
    num = int(ends[-1])
    pairs = np.arange(num) if num <= _MOST_PAIRS else np.random.default_rng(0).integers(num, size=_MOST_PAIRS)
    distances = np.empty(len(pairs))
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[start : start + _PAIRS_AT_ONCE]
        row = np.searchsorted(ends, part, side="right")
        own = patient[judged[row]]
        place = part - ends[row] + len(x) - sizes[own]  # among the strangers
        stranger = order[place + np.where(place < starts[own], 0, sizes[own])]
        distances[start : start + len(part)] = np.linalg.norm(x[stranger] - x[judged[row]], axis=1)
    return float(np.median(distances))


def _are_nearest(x: Floats, again: Floats, patient: Numbers, judged: Numbers, gone: Floats) -> NDArray[np.bool_]:
    """Whether each judged case, seen again, is farther from all strangers than it has gone.

    By matrix products, many cases at once; where their rounding could decide, by the differences themselves.
    """
    squares, is_nearest = np.square(x).sum(axis=1), np.empty(len(judged), bool)
    step = max(1, _DISTANCES_AT_ONCE // len(x))
    for start in range(0, len(judged), step):
        rows = judged[start : start + step]
        own_squares, limit = np.square(again[rows]).sum(axis=1), gone[start : start + step] ** 2
        to_all = own_squares[:, None] + squares - 2 * (again[rows] @ x.T)
        to_all[patient[rows][:, None] == patient] = np.inf
        nearest = to_all.min(axis=1)
        is_nearest[start : start + step] = limit < nearest
        for i in np.flatnonzero(np.abs(limit - nearest) <= _ROUNDING * (own_squares + squares.max())):
            strangers = x[patient != patient[rows[i]]]
            is_nearest[start + i] = gone[start + i] < np.linalg.norm(strangers - again[rows[i]], axis=1).min()
    return is_nearest
