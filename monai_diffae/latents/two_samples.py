"""Two-sample tests of z_sem: do two sets have the same distribution, and does one copy the other?

Both distances have the same form, ``E k(a, a') + E k(b, b') - 2 E k(a, b)`` over pairs of different cases: with
``k = -|x - y|`` it is the energy distance, with a Gaussian kernel the squared maximum mean discrepancy (Sejdinovic et
al., 2013, arXiv 1207.6076). A permutation or bootstrap draw only changes the weights of the pairs, so one pass over
the pairs, in blocks of rows, computes all draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.neighbors import numbered_groups
from monai_diffae.latents.statistics import Floats, checked_codes
from monai_diffae.policies import check_choice

Statistic = Literal["energy", "mmd"]
Kernel: TypeAlias = Callable[[Floats], Floats]  # a function of distances

_BLOCK_MIB = 64
_MEDIAN_ROWS = 1000
_LEAST_BOOTSTRAPPED = 10  # with fewer cases, a draw can consist of a single case, which has no pairs


@dataclass(frozen=True)
class PermutationTest:
    """The result of :func:`permutation_test`."""

    value: float  #: the statistic of the two samples
    p_value: float  #: the share of permutations, the identity included, whose value is at least as large
    null_low: float  #: lower end of the central 95% of the permutations' values
    null_high: float  #: upper end of the central 95% of the permutations' values


@dataclass(frozen=True)
class DifferenceInterval:
    """The result of :func:`difference_interval`."""

    value: float  #: ``statistic(a, reference) - statistic(b, reference)``; below 0 if a is closer to the reference
    low: float  #: lower end of the 95% interval, from a bootstrap over the cases of all three samples
    high: float  #: upper end of the 95% interval


def energy_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The unbiased energy distance, ``2 E|a - b| - E|a - a'| - E|b - b'|`` (Szekely and Rizzo, 2013).

    Its expectation is 0 for samples of the same distribution, so it can be slightly negative. All dimensions have the
    same weight, so give normalised z_sem.

    Args:
        a: ``[N, D]``, N at least 2.
        b: ``[M, D]``, M at least 2.

    Example:
        >>> energy_distance([[0.0], [1.0]], [[10.0], [11.0]])
        18.0
    """
    return _value(np.negative, *_checked(a, b))


def mmd(a: ArrayLike, b: ArrayLike, bandwidth: float | None = None) -> float:
    """The unbiased squared maximum mean discrepancy (Gretton et al., 2012, equation 3).

    The kernel is ``exp(-|x - y|^2 / (2 bandwidth^2))``. The expectation is 0 for samples of the same distribution, so
    the value can be slightly negative. Give normalised z_sem.

    Args:
        a: ``[N, D]``, N at least 2.
        b: ``[M, D]``, M at least 2.
        bandwidth: above 0; None: the median distance between the cases of both samples (at most 1000, evenly spaced).

    Example:
        >>> round(mmd([[0.0], [1.0]], [[100.0], [101.0]], bandwidth=1.0), 3)  # 2 exp(-1/2)
        1.213
    """
    x, y = _checked(a, b)
    return _value(_gaussian(np.concatenate([x, y]), bandwidth), x, y)


def permutation_test(
    statistic: Statistic, a: ArrayLike, b: ArrayLike, *, groups: tuple[ArrayLike, ArrayLike] | None = None,
    num: int = 500, seed: int = 0,
) -> PermutationTest:  # fmt: skip
    """Test whether two samples have the same distribution, by randomly dividing their union again and again.

    Patients are divided, not cases: several scans of a patient are similar, and would make equal distributions look
    different. Both samples need about equally many scans per patient; otherwise, give one scan of each.

    Args:
        statistic: ``energy`` or ``mmd``, over pairs of cases of different patients.
        a: ``[N, D]``, normalised.
        b: ``[M, D]``, likewise.
        groups: the patient of each case of a ``[N]`` and of b ``[M]``; None: each case is a patient of its own.
        num: number of permutations; the smallest p-value is ``1 / (num + 1)``.
        seed: random seed of the permutations.

    Raises:
        ConfigError: the statistic is unknown, the shapes do not match, values are not finite, a sample has fewer than
            two patients, or a patient is in both samples.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> a, b = generator.normal(size=(60, 4)), generator.normal(size=(40, 4)) + 1
        >>> permutation_test("energy", a, b, num=99).p_value
        0.01
    """
    x, y = _checked(a, b)
    pooled = np.concatenate([x, y])
    kernel = _kernel(statistic, pooled)
    names = np.arange(len(pooled)) if groups is None else np.concatenate([np.asarray(each, str) for each in groups])
    member = numbered_groups(names)
    patients_a, patients_b = np.unique(member[: len(x)]), np.unique(member[len(x) :])
    if min(len(patients_a), len(patients_b)) < 2 or np.intersect1d(patients_a, patients_b).size:
        raise ConfigError("groups: each sample needs two patients or more that are not in the other one")
    is_a = np.isin(np.arange(member.max() + 1), patients_a).astype(np.float64)[:, None]
    draws = np.random.default_rng(seed).permuted(np.tile(is_a, num), axis=0)
    in_a = np.concatenate([is_a, draws], axis=1)[member]
    value, *null = _weighted(pooled, kernel, in_a, 1 - in_a, member)
    # values that are equal up to rounding count as at least as large: equal cases in another order give the same value
    num_as_large = np.sum(np.array(null) >= value - 1e-12 * max(abs(value), 1.0))
    low, high = np.percentile(null, [2.5, 97.5])
    return PermutationTest(float(value), float((1 + num_as_large) / (num + 1)), float(low), float(high))


def difference_interval(
    reference: ArrayLike, a: ArrayLike, b: ArrayLike, statistic: Statistic = "energy", *, num: int = 500, seed: int = 0
) -> DifferenceInterval:
    """Compare how closely two samples match a reference; an interval below 0 means that a is closer.

    For example, are the latent DDIM's samples (a) closer to held-out z_sem than those of a fitted Gaussian (b)?

    Args:
        reference: ``[N, D]``, independent cases, normalised.
        a: ``[M, D]``, likewise.
        b: ``[K, D]``, likewise.
        statistic: ``energy`` or ``mmd`` (with the same bandwidth for both).
        num: number of bootstrap draws; reference, a and b are resampled separately.
        seed: random seed of the draws.

    Raises:
        ConfigError: the statistic is unknown, the shapes do not match, there are fewer than 10 cases, or values are
            not finite.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> reference, near = generator.normal(size=(2, 100, 4))
        >>> difference_interval(reference, near, near + 1).high < 0
        True
    """
    samples = _checked(reference, a, b, num_least=_LEAST_BOOTSTRAPPED)
    kernel = _kernel(statistic, np.concatenate(samples))
    generator = np.random.default_rng(seed)
    drawn = [
        np.column_stack([np.ones(len(z)), generator.multinomial(len(z), np.full(len(z), 1 / len(z)), num).T])
        for z in samples
    ]
    to_a, to_b = (
        _weighted(np.concatenate([samples[0], samples[k]]), kernel, *_side_by_side(drawn[0], drawn[k])) for k in (1, 2)
    )
    value, *draws = to_a - to_b
    low, high = np.percentile(draws, [2.5, 97.5])
    return DifferenceInterval(float(value), float(low), float(high))


def nearest_distances(a: ArrayLike, b: ArrayLike) -> Floats:
    """The distance from each row of a to its nearest row of b: ``[N, D]``, ``[M, D]`` -> ``[N]``.

    Example:
        >>> nearest_distances([[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 4.0]])
        array([0., 3.])
    """
    from sklearn.metrics import pairwise_distances_argmin

    x, y = _checked(a, b, num_least=1)
    # recomputed for these pairs, since the fast search rounds small distances
    return np.linalg.norm(x - y[pairwise_distances_argmin(x, y)], axis=1)


def copying_ratio(samples: ArrayLike, train: ArrayLike, held_out: ArrayLike) -> float:
    """The median distance from samples to their nearest training case, divided by that of held-out cases.

    At about 1, samples are as new as unseen cases; far below 1, they are copies of the training set.

    Args:
        samples: ``[N, D]``, normalised.
        train: ``[M, D]``, the training cases of the model that drew the samples.
        held_out: ``[K, D]``, cases that the model was not trained on.

    Raises:
        ConfigError: the shapes do not match, values are not finite, or half of the held-out cases or more are in the
            training set.

    Example:
        >>> train, new, held_out = np.random.default_rng(0).normal(size=(3, 200, 8))
        >>> round(copying_ratio(new, train, held_out), 1), copying_ratio(train[:50], train, held_out)
        (1.0, 0.0)
    """
    usual_distance = float(np.median(nearest_distances(held_out, train)))
    if usual_distance == 0:
        raise ConfigError("held_out: half of the cases or more are in the training set; give cases that are not")
    return float(np.median(nearest_distances(samples, train))) / usual_distance


def _gaussian(pooled: Floats, bandwidth: float | None) -> Kernel:
    from scipy.spatial.distance import pdist

    if bandwidth is None:
        step = -(-len(pooled) // _MEDIAN_ROWS)
        bandwidth = float(np.median(pdist(pooled[::step])))
    if not 0 < bandwidth < np.inf:
        raise ConfigError(f"bandwidth: {bandwidth} is not above 0; set another, or give cases that differ")
    twice_variance = 2 * bandwidth**2
    return lambda distances: np.exp(-(distances**2) / twice_variance)


def _kernel(statistic: Statistic, pooled: Floats) -> Kernel:
    check_choice("statistic", statistic, Statistic)
    return np.negative if statistic == "energy" else _gaussian(pooled, None)


def _value(kernel: Kernel, x: Floats, y: Floats) -> float:
    weights = _side_by_side(np.ones((len(x), 1)), np.ones((len(y), 1)))
    return float(_weighted(np.concatenate([x, y]), kernel, *weights)[0])


def _side_by_side(weights_a: Floats, weights_b: Floats) -> tuple[Floats, Floats]:
    """Weights of the cases of each sample as weights of the concatenated cases."""
    return np.pad(weights_a, ((0, len(weights_b)), (0, 0))), np.pad(weights_b, ((len(weights_a), 0), (0, 0)))


def _weighted(
    z: Floats, kernel: Kernel, weights_a: Floats, weights_b: Floats, groups: NDArray[np.intp] | None = None
) -> Floats:
    """The statistic ``[P]`` for each column of weights ``[N, P]``; no case is paired with one of its own group."""
    from sklearn.metrics import pairwise_distances_chunked

    member = np.arange(len(z)) if groups is None else groups
    in_a, in_b, between = np.zeros((3, weights_a.shape[1]))
    start = 0
    for distances in pairwise_distances_chunked(z, metric="euclidean", working_memory=_BLOCK_MIB):
        rows = np.arange(start, start + len(distances))
        pairs = kernel(distances)
        pairs[member[rows][:, None] == member] = 0
        with_b = pairs @ weights_b
        in_a += np.sum(weights_a[rows] * (pairs @ weights_a), axis=0)
        in_b += np.sum(weights_b[rows] * with_b, axis=0)
        between += np.sum(weights_a[rows] * with_b, axis=0)
        start += len(rows)
    total_a, total_b = weights_a.sum(axis=0), weights_b.sum(axis=0)
    group_a, group_b = np.zeros((2, member.max() + 1, weights_a.shape[1]))
    np.add.at(group_a, member, weights_a)
    np.add.at(group_b, member, weights_b)
    mean_a = in_a / (total_a**2 - np.sum(group_a**2, axis=0))
    mean_b = in_b / (total_b**2 - np.sum(group_b**2, axis=0))
    return np.asarray(mean_a + mean_b - 2 * between / (total_a * total_b - np.sum(group_a * group_b, axis=0)))


def _checked(*samples: ArrayLike, num_least: int = 2) -> list[Floats]:
    codes = [checked_codes(z, num_least=num_least).astype(np.float64) for z in samples]
    if len({z.shape[1] for z in codes}) > 1:
        sizes = ", ".join(str(z.shape[1]) for z in codes)
        raise ConfigError(f"z_sem: the samples have {sizes} dimensions; give samples with the same number of them")
    return codes
