"""How far z_sem moves when a case is seen again, compared with the distance between patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.groups import numbered_groups
from monai_diffae.latents.neighbors import nearest_neighbors
from monai_diffae.latents.statistics import checked_codes

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]

_MAX_PAIRS = 500_000  # the median over a random sample of this size is off by less than a thousandth
_AT_ONCE = 2**13


@dataclass(frozen=True)
class Stability:
    """The result of :func:`stability`.

    Attributes:
        ratio: the median distance between the two z_sem of a case, divided by the median distance between different
            patients. 0: z_sem does not move; 1: it moves as far as to another patient. The second median is over all
            pairs of cases if there are at most 500,000 (707 cases), else over 500,000 pairs drawn with a fixed seed.
        ratio_90: the 90th percentile of the first distance, divided by the same median.
        rank_1: the share of cases whose second z_sem is closer to their own than to that of any other patient.
        num_cases: number of compared cases.
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
    """Compare the z_sem of cases with a second z_sem of the same cases.

    Args:
        z: ``[N, D]``, normalised.
        z_again: ``[N, D]``, normalised in the same way: of the changed cases, or ``z`` again to compare scans.
        patients: ``[N]``, the patient of each case.
        scans: ``[N]``, the scan of each case. A case is then compared with the nearest case in another scan of its
            patient, not with itself or with its own scan.
        slices: ``[N]``, the slice number of each case: only the same slice of other scans counts. None: cases are whole
            scans.

    Raises:
        ConfigError: the shapes do not match, values are not finite, no case can be compared with itself and with other
            patients, or most patients have the same z_sem.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(50, 8))
        >>> moved = stability(z, z + 0.01, patients=np.arange(50))
        >>> round(moved.ratio, 3), moved.rank_1
        (0.007, 1.0)
    """
    x = checked_codes(z, num_least=1).astype(np.float64)
    again = checked_codes(z_again, x.shape[1], num_least=1).astype(np.float64)
    labels = [np.asarray(each) for each in (patients, scans, slices) if each is not None]
    if again.shape != x.shape or any(each.shape != (len(x),) for each in labels):
        raise ConfigError("stability: z, z_again, patients, scans and slices must be of as many cases")
    patient = numbered_groups(patients)
    if scans is None:
        displacement = np.linalg.norm(again - x, axis=1)
    else:
        group = patient if slices is None else numbered_groups(patient * len(x) + numbered_groups(slices))
        displacement = _distance_to_other_scans(x, again, group, numbered_groups(scans))
    compared = np.flatnonzero(np.isfinite(displacement) & (patient.max() > 0))
    if not len(compared):
        raise ConfigError(
            "stability: no case can be compared both with itself and with another patient; give more cases"
        )
    usual_distance = _distance_between_patients(x, patient, compared)
    if usual_distance == 0:
        raise ConfigError("stability: most patients have the same z_sem; train the encoder")
    others = nearest_neighbors(again[compared], x, 1, patient[compared], patient)
    is_nearest = displacement[compared] < others.distances[:, 0]
    ratio, ratio_90 = np.percentile(displacement[compared], [50, 90]) / usual_distance
    return Stability(float(ratio), float(ratio_90), float(is_nearest.mean()), len(compared))


def _distance_to_other_scans(x: Floats, again: Floats, group: Numbers, scan: Numbers) -> Floats:
    """The distance (N,) from each case to the nearest case of its group in another scan; infinite if there is none."""
    distance = np.full(len(x), np.inf)
    for members in np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1]):
        for i in members:
            others = members[scan[members] != scan[i]]
            if len(others):
                distance[i] = np.linalg.norm(x[others] - again[i], axis=1).min()
    return distance


def _distance_between_patients(x: Floats, patient: Numbers, compared: Numbers) -> float:
    """The median distance from the compared cases to cases of other patients, over all pairs or a sample of them."""
    num = len(compared) * len(x)
    pairs = np.arange(num) if num <= _MAX_PAIRS else np.random.default_rng(0).integers(num, size=_MAX_PAIRS)
    rows, others = compared[pairs // len(x)], pairs % len(x)
    pairs = np.stack([rows, others])[:, patient[rows] != patient[others]]
    parts = np.split(pairs, range(_AT_ONCE, pairs.shape[1], _AT_ONCE), axis=1)
    return float(np.median(np.concatenate([np.linalg.norm(x[one] - x[other], axis=1) for one, other in parts])))
