"""Whether two sets of z_sem are from one distribution, and whether one copies the other.

Both distances here have one form, ``E k(a, a') + E k(b, b') - 2 E k(a, b)`` over pairs of different cases: with
``k = -|x - y|`` it is the energy distance, with a Gaussian the squared maximum mean discrepancy (Sejdinovic et al.,
2013, arXiv 1207.6076). So a permutation or a bootstrap only weighs the same pairs anew: one pass over the pairs, in
blocks of rows, serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import checked_codes

Floats = NDArray[np.float64]
Statistic = Literal["energy", "mmd"]
Kernel: TypeAlias = Callable[[Floats], Floats]  # of distances

_BLOCK_MIB = 64
_MEDIAN_ROWS = 1000
_LEAST_BOOTSTRAPPED = 10  # with fewer, a draw can be one case alone, which has no pairs


@dataclass(frozen=True)
class PermutationTest:
    """Whether a statistic is larger than where both samples are from one distribution.

    Attributes:
        value: of the samples as they are.
        p_value: the share of the permutations, this one included, that are at least as large.
        null_low: lower end of the central 95% of the permutations' values.
        null_high: its upper end.
    """

    value: float
    p_value: float
    null_low: float
    null_high: float


@dataclass(frozen=True)
class DifferenceInterval:
    """How much farther from the reference the one sample is than the other.

    Attributes:
        value: ``statistic(a, reference) - statistic(b, reference)``: below 0 where a is nearer.
        low: lower end of its 95% interval, from a bootstrap over the cases of all three.
        high: its upper end.
    """

    value: float
    low: float
    high: float


def energy_distance(a: ArrayLike, b: ArrayLike) -> float:
    """``2 E|a - b| - E|a - a'| - E|b - b'|``, without bias (Szekely and Rizzo, 2013): 0 of one distribution.

    It can be a little below 0. Distances count all dimensions alike, so give normalised z_sem.

    Args:
        a: ``[N, D]``, N at least 2.
        b: ``[M, D]``, M at least 2.

    Raises:
        ConfigError: other shapes, or values that are not finite.

    Example:
        >>> energy_distance([[0.0], [1.0]], [[10.0], [11.0]])
        18.0
    """
    return _value(_energy, *_checked(a, b))


def mmd(a: ArrayLike, b: ArrayLike, bandwidth: float | None = None) -> float:
    """The squared maximum mean discrepancy, without bias (Gretton et al., 2012, equation 3): 0 of one distribution.

    The kernel is ``exp(-|x - y|^2 / (2 bandwidth^2))``. It can be a little below 0. Give normalised z_sem.

    Args:
        a: ``[N, D]``, N at least 2.
        b: ``[M, D]``, M at least 2.
        bandwidth: above 0; None: the median distance between cases of both (of 1000 at most, evenly picked).

    Raises:
        ConfigError: other shapes, values that are not finite, or a bandwidth that is not above 0.

    Example:
        >>> round(mmd([[0.0], [1.0]], [[100.0], [101.0]], bandwidth=1.0), 3)  # 2 exp(-1/2)
        1.213
    """
    x, y = _checked(a, b)
    return _value(_gaussian(np.concatenate([x, y]), bandwidth), x, y)


def permutation_test(
    statistic: Statistic, a: ArrayLike, b: ArrayLike, *, num: int = 500, seed: int = 0
) -> PermutationTest:
    """Test whether two samples are from one distribution, by dividing their union anew.

    Args:
        statistic: ``energy`` or ``mmd``.
        a: ``[N, D]``, independent cases, normalised.
        b: ``[M, D]``, likewise.
        num: of permutations; the smallest p-value is ``1 / (num + 1)``.
        seed: of the permutations.

    Raises:
        ConfigError: no such statistic, other shapes, or values that are not finite.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> a, b = generator.normal(size=(60, 4)), generator.normal(size=(40, 4)) + 1
        >>> permutation_test("energy", a, b, num=99).p_value
        0.01
    """
    x, y = _checked(a, b)
    pooled = np.concatenate([x, y])
    kernel = _kernel(statistic, pooled)
    is_a = np.repeat([1.0, 0.0], [len(x), len(y)])[:, None]
    draws = np.random.default_rng(seed).permuted(np.tile(is_a, num), axis=0)
    in_a = np.concatenate([is_a, draws], axis=1)
    value, *null = _weighted(pooled, kernel, in_a, 1 - in_a)
    # equal up to rounding counts as at least as large: a division of equal cases gives the same value in another order
    as_large = np.sum(np.array(null) >= value - 1e-12 * max(abs(value), 1.0))
    low, high = np.percentile(null, [2.5, 97.5])
    return PermutationTest(float(value), float((1 + as_large) / (num + 1)), float(low), float(high))


def difference_interval(
    reference: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic = "energy",
    *,
    num: int = 500,
    seed: int = 0,
) -> DifferenceInterval:
    """Whether samples match a reference better than others do: an interval below 0 says that a does.

    Such as whether the latent DDIM's samples (a) are nearer to held-out z_sem than a fitted Gaussian's (b).

    Args:
        reference: ``[N, D]``, independent cases, normalised.
        a: ``[M, D]``, likewise.
        b: ``[K, D]``, likewise.
        statistic: ``energy`` or ``mmd`` (with one bandwidth for both).
        num: of bootstrap draws; reference, a and b are each drawn from themselves.
        seed: of the draws.

    Raises:
        ConfigError: no such statistic, other shapes, fewer than 10 cases, or values that are not finite.

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
        np.concatenate(
            [np.ones((len(z), 1)), generator.multinomial(len(z), np.full(len(z), 1 / len(z)), num).T], axis=1
        )
        for z in samples
    ]
    to_a, to_b = (
        _weighted(np.concatenate([samples[0], samples[k]]), kernel, *_side_by_side(drawn[0], drawn[k])) for k in (1, 2)
    )
    value, *draws = to_a - to_b
    low, high = np.percentile(draws, [2.5, 97.5])
    return DifferenceInterval(float(value), float(low), float(high))


def nearest_distances(a: ArrayLike, b: ArrayLike) -> Floats:
    """The distance of each row of a to its nearest row of b: ``[N, D]``, ``[M, D]`` -> ``[N]``; 0 for a row of both.

    Raises:
        ConfigError: other shapes, or values that are not finite.

    Example:
        >>> nearest_distances([[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 4.0]])
        array([0., 3.])
    """
    from sklearn.metrics import pairwise_distances_argmin

    x, y = _checked(a, b, num_least=1)
    # computed again for the pair, since the fast search rounds small distances
    return np.linalg.norm(x - y[pairwise_distances_argmin(x, y)], axis=1)


def copying_ratio(samples: ArrayLike, train: ArrayLike, held_out: ArrayLike) -> float:
    """The median distance of samples to their nearest training case, over that of held-out cases.

    About 1: samples are as new as unseen cases; far below 1: they are copies of the training set.

    Args:
        samples: ``[N, D]``, normalised.
        train: ``[M, D]``, what the model that made them was fitted to.
        held_out: ``[K, D]``, cases that it was not.

    Raises:
        ConfigError: other shapes, values that are not finite, or held-out cases that are in the training set.

    Example:
        >>> train, new, held_out = np.random.default_rng(0).normal(size=(3, 200, 8))
        >>> round(copying_ratio(new, train, held_out), 1), copying_ratio(train[:50], train, held_out)
        (1.0, 0.0)
    """
    of_held_out = float(np.median(nearest_distances(held_out, train)))
    if of_held_out == 0:
        raise ConfigError("held_out: half of the cases or more are in the training set; give cases that are not")
    return float(np.median(nearest_distances(samples, train))) / of_held_out


def _energy(distances: Floats) -> Floats:
    return -distances


def _gaussian(pooled: Floats, bandwidth: float | None) -> Kernel:
    from scipy.spatial.distance import pdist

    if bandwidth is None:
        step = -(-len(pooled) // _MEDIAN_ROWS)
        bandwidth = float(np.median(pdist(pooled[::step])))
    if not 0 < bandwidth < np.inf:
        raise ConfigError(f"bandwidth: {bandwidth} is not above 0; name one, or give cases that differ")
    width = bandwidth
    return lambda distances: np.exp(-(distances**2) / (2 * width**2))


def _kernel(statistic: Statistic, pooled: Floats) -> Kernel:
    if statistic not in get_args(Statistic):
        raise ConfigError(f"statistic: {statistic!r} is not one of {', '.join(get_args(Statistic))}")
    return _energy if statistic == "energy" else _gaussian(pooled, None)


def _value(kernel: Kernel, x: Floats, y: Floats) -> float:
    weights = _side_by_side(np.ones((len(x), 1)), np.ones((len(y), 1)))
    return float(_weighted(np.concatenate([x, y]), kernel, *weights)[0])


def _side_by_side(weights_a: Floats, weights_b: Floats) -> tuple[Floats, Floats]:
    """Weights of the cases of each sample -> weights of the cases of both, one after the other."""
    return (
        np.concatenate([weights_a, np.zeros((len(weights_b), weights_a.shape[1]))]),
        np.concatenate([np.zeros((len(weights_a), weights_b.shape[1])), weights_b]),
    )


def _weighted(z: Floats, kernel: Kernel, weights_a: Floats, weights_b: Floats) -> Floats:
    """The statistic for each column of weights ``[N, P]`` -> ``[P]``; no case is paired with itself."""
    from sklearn.metrics import pairwise_distances_chunked

    in_a, in_b, between = np.zeros((3, weights_a.shape[1]))
    start = 0
    for distances in pairwise_distances_chunked(z, metric="euclidean", working_memory=_BLOCK_MIB):
        rows = np.arange(start, start + len(distances))
        pairs = kernel(distances)
        pairs[np.arange(len(rows)), rows] = 0
        with_b = pairs @ weights_b
        in_a += np.sum(weights_a[rows] * (pairs @ weights_a), axis=0)
        in_b += np.sum(weights_b[rows] * with_b, axis=0)
        between += np.sum(weights_a[rows] * with_b, axis=0)
        start += len(rows)
    of_a, of_b = weights_a.sum(axis=0), weights_b.sum(axis=0)
    mean_a = in_a / (of_a**2 - np.sum(weights_a**2, axis=0))
    mean_b = in_b / (of_b**2 - np.sum(weights_b**2, axis=0))
    return np.asarray(mean_a + mean_b - 2 * between / (of_a * of_b))


def _checked(*samples: ArrayLike, num_least: int = 2) -> list[Floats]:
    codes = [checked_codes(z, num_least=num_least).astype(np.float64) for z in samples]
    if len({z.shape[1] for z in codes}) > 1:
        raise ConfigError(f"z_sem: the samples have {', '.join(str(z.shape[1]) for z in codes)} dimensions; give alike")
    return codes
