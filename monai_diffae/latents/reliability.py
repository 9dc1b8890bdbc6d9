"""Reliability of repeated measurements: intraclass correlations, shares of variance, fingerprinting."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.neighbors import nearest_neighbors, numbered_groups
from monai_diffae.latents.probing.scores import bootstrapped_mean, bounded_interval
from monai_diffae.latents.statistics import Floats, checked_codes, float64_codes

_MOST_REPEATS = 20
_MOST_QUERIED = 5000  # patients whose scans are looked up
_GROUPS, _LEAST_GROUPS = 20, 5  # of the jackknife


def complete_design(patients: ArrayLike, repeats: ArrayLike) -> NDArray[np.intp]:
    """The rows ``[n, k]`` of the n patients who each have the same k repeats, the first scan of each.

    Of the most frequent repeats, as many are used as give the most scans.
    """
    patient, repeat = numbered_groups(patients), numbered_groups(repeats)
    if repeat.max(initial=0) >= _MOST_REPEATS:
        raise ConfigError(
            f"repeats: there are {repeat.max() + 1} different ones, at most {_MOST_REPEATS} can be compared; number "
            "the visits of each patient"
        )
    first = np.full((patient.max(initial=0) + 1, repeat.max(initial=0) + 1), -1, np.intp)
    first[patient[::-1], repeat[::-1]] = np.arange(len(patient))[::-1]
    first = first[:, np.argsort(-(first >= 0).sum(axis=0), kind="stable")]
    designs = [first[(first[:, :k] >= 0).all(axis=1), :k] for k in range(2, first.shape[1] + 1)]
    rows = max(designs, key=lambda design: design.size, default=first[:0])
    if len(rows) < 2:
        raise ConfigError("repeats: fewer than two patients have two different ones; number the visits of each patient")
    return rows


def intraclass_correlations(values: ArrayLike) -> dict[str, Floats]:
    """ICC(2,1) and ICC(3,1) of measurements ``[n, k, D]``, with 95 % intervals from the F distribution.

    Shrout and Fleiss 1979; McGraw and Wong 1996. What never varies has no reliability: NaN.
    """
    from scipy.stats import f

    x = np.asarray(values, np.float64)
    n, k, _ = x.shape
    df, df_rest = n - 1, (n - 1) * (k - 1)
    x = x - x.mean(axis=(0, 1))
    patients, repeats = x.mean(axis=1), x.mean(axis=0)
    between = k * np.square(patients).sum(axis=0) / df
    across = n * np.square(repeats).sum(axis=0) / (k - 1)
    rest = np.square(x - patients[:, None] - repeats).sum(axis=(0, 1)) / df_rest
    with np.errstate(divide="ignore", invalid="ignore"):
        icc2 = (between - rest) / (between + (k - 1) * rest + k * (across - rest) / n)
        icc3 = (between - rest) / (between + (k - 1) * rest)
        ratio, weight = across / rest, n * (1 + (k - 1) * icc2) - k * icc2
        v = df_rest * (k * icc2 * ratio + weight) ** 2 / (df * k**2 * icc2**2 * ratio**2 + weight**2)
        low, high = f.ppf(0.975, df, v), f.ppf(0.975, v, df)
        spread = k * across + (k * n - k - n) * rest
        low2, high2 = n * (between - low * rest), n * (high * between - rest)
        ends2 = low2 / (low * spread + n * between), high2 / (spread + n * high * between)
        f_low, f_high = between / rest / f.ppf(0.975, df, df_rest), between / rest * f.ppf(0.975, df_rest, df)
        ends3 = (f_low - 1) / (f_low + k - 1), (f_high - 1) / (f_high + k - 1)
    names = ("icc2", "icc2_low", "icc2_high", "icc3", "icc3_low", "icc3_high")
    is_perfect = (rest == 0) & (between > 0) & (across == 0)  # an interval would divide by 0
    return {
        name: np.where(is_perfect, 1.0, np.where(np.isfinite(value), np.minimum(value, 1), np.nan))
        for name, value in zip(names, (icc2, *ends2, icc3, *ends3), strict=True)
    }


def variance_components(values: ArrayLike, patients: ArrayLike, scanners: ArrayLike | None = None) -> Floats:
    """Variances ``[3, D]`` of measurements ``[N, D]`` due to patient, scanner (0 without) and rest, as random effects.

    The estimates equate the sums of squares of a linear model with what is expected of them (Henderson's method 3).
    They are unbiased in any design, and may be negative; if not, they equal restricted maximum likelihood in balanced
    ones.
    """
    from scipy.sparse import csr_matrix

    x = float64_codes(values, num_least=2)
    x = x - x.mean(axis=0)
    by_patient, by_scanner = (
        csr_matrix((np.ones(len(x)), (np.arange(len(x)), numbered_groups(groups))))
        for groups in (patients, np.zeros(len(x)) if scanners is None else scanners)
    )  # [N, groups]: which row belongs to which group
    counts = by_patient.T @ by_scanner
    num_p, num_s = (np.asarray(counts.sum(axis=axis), np.float64).ravel() for axis in (1, 0))
    sums_p, sums_s = by_patient.T @ x, by_scanner.T @ x
    scaled = counts.multiply(1 / num_p[:, None]).tocsr()  # the share of each scanner in the scans of a patient
    within = np.diag(num_s) - (counts.T @ scaled).toarray()  # of scanners, after patients
    rank = int(np.linalg.matrix_rank(within, tol=1e-9 * len(x), hermitian=True))
    residual = sums_s - scaled.T @ sums_p
    scanner_squares = (residual * (np.linalg.pinv(within, rcond=1e-9, hermitian=True) @ residual)).sum(axis=0)
    squares = np.square(x).sum(axis=0)
    rest_squares = squares - (sums_p**2 / num_p[:, None]).sum(axis=0) - scanner_squares
    patient_squares = squares - (sums_s**2 / num_s[:, None]).sum(axis=0) - rest_squares
    df = len(x) - len(num_p) - rank
    if df < 1:
        raise ConfigError("patients: none has two scans, or too few have; give repeated scans")
    if scanners is not None and rank == 0:
        raise ConfigError(
            "scanners: no patient was scanned on two, so scanners and patients cannot be told apart; omit the "
            "scanners, or add patients who were"
        )
    rest = np.maximum(rest_squares, 0) / df
    scanner = (scanner_squares - rank * rest) / np.trace(within) if rank else np.zeros_like(rest)
    weight = len(x) - (counts.power(2).multiply(1 / num_s)).sum()
    patient = (patient_squares - (len(num_p) + rank - len(num_s)) * rest) / weight
    return np.stack([patient, scanner, rest])


def variance_shares(variances: Floats) -> Floats:
    """The shares of variances ``[3]`` or ``[3, D]`` in their sum; those that were estimated below 0 count as 0."""
    parts = np.maximum(variances, 0)
    with np.errstate(invalid="ignore"):
        return np.asarray(parts / parts.sum(axis=0))


def total_shares(
    values: ArrayLike, patients: ArrayLike, scanners: ArrayLike | None = None
) -> tuple[Floats, Floats, Floats]:
    """The shares ``[3]`` of patient, scanner and rest in the variance of all measurements, with 95 % intervals.

    The intervals are those of a jackknife over 20 groups of patients, so they hold for these scanners, not for others;
    NaN with fewer than 5 patients, or if one group decides whether scanners and patients can be told apart.
    """
    from scipy.stats import t

    x, patient = np.asarray(values), numbered_groups(patients)
    scanner = None if scanners is None else np.asarray(scanners)

    def estimate(keep: Any) -> Floats:
        parts = variance_components(x[keep], patient[keep], None if scanner is None else scanner[keep])
        return variance_shares(np.nansum(parts, axis=1))

    shares, num = estimate(slice(None)), min(_GROUPS, int(patient.max()) + 1)
    try:
        parts = np.stack([estimate(patient % num != group) for group in range(num)])
    except ConfigError:
        num = 0
    if num < _LEAST_GROUPS:
        return shares, np.full(3, np.nan), np.full(3, np.nan)
    error = np.sqrt((num - 1) * parts.var(axis=0)) * t.ppf(0.975, num - 1)
    return shares, np.maximum(shares - error, 0), np.minimum(shares + error, 1)


@dataclass(frozen=True)
class Fingerprinting:
    """How often the scan nearest to a scan is of the same patient."""

    rate: float
    low: float  # of its 95 % interval, from a bootstrap over patients
    high: float
    chance: float  # the rate if neighbors were drawn at random
    num_patients: int  # whose scans were looked up, at most 5000


def fingerprinting(z: ArrayLike, patients: ArrayLike, repeats: ArrayLike, seed: int = 0) -> Fingerprinting:
    """Find out whether a patient's other scan is the nearest of all scans ``[N, D]``, but those of the same repeat."""
    codes, patient = checked_codes(z, num_least=2), numbered_groups(patients)
    repeat = numbered_groups(repeats)
    cell = numbered_groups(patient * (repeat.max() + 1) + repeat)
    of_patient, of_cell = np.bincount(patient)[patient], np.bincount(cell)[cell]
    repeated = np.unique(patient[of_patient > of_cell])
    queried = np.random.default_rng(seed).permutation(repeated)[:_MOST_QUERIED]
    rows = np.flatnonzero(np.isin(patient, queried))
    nearest = nearest_neighbors(codes[rows], codes, 1, cell[rows], cell).indices[:, 0]
    is_own = (patient[nearest] == patient[rows]).astype(np.float64)

    draws = bootstrapped_mean(is_own, patient[rows], seed)
    value = float(is_own.mean())
    low, high = bounded_interval(value, draws, len(queried))
    chance = float(((of_patient - of_cell) / (len(codes) - of_cell))[rows].mean())
    return Fingerprinting(value, low, high, chance, len(queried))
