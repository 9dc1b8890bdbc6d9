"""Two samples of z_sem: do they have the same distribution, and does one copy the other?"""

import numpy as np
from numpy.typing import ArrayLike

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import Floats, checked_codes

_BLOCK_MIB = 64
_MEDIAN_ROWS = 1000


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
    from scipy.spatial.distance import pdist
    from sklearn.metrics import pairwise_distances_chunked

    x, y = _checked(a, b)
    pooled = np.concatenate([x, y])
    if bandwidth is None:
        bandwidth = float(np.median(pdist(pooled[:: -(-len(pooled) // _MEDIAN_ROWS)])))
    if not 0 < bandwidth < np.inf:
        raise ConfigError(f"bandwidth: {bandwidth} is not above 0; set another, or give cases that differ")
    in_x = (np.arange(len(pooled)) < len(x)).astype(np.float64)[:, None]
    sums, start = np.zeros(3), 0
    for distances in pairwise_distances_chunked(pooled, metric="euclidean", working_memory=_BLOCK_MIB):
        rows = np.arange(start, start + len(distances))
        pairs = np.exp(-(distances**2) / (2 * bandwidth**2))
        pairs[rows - start, rows] = 0  # no case is paired with itself
        with_x, with_y = pairs @ in_x, pairs @ (1 - in_x)
        sums += [(in_x[rows] * with_x).sum(), ((1 - in_x[rows]) * with_y).sum(), (in_x[rows] * with_y).sum()]
        start += len(rows)
    n, m = len(x), len(y)
    return float(sums[0] / (n * (n - 1)) + sums[1] / (m * (m - 1)) - 2 * sums[2] / (n * m))


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


def _checked(*samples: ArrayLike, num_least: int = 2) -> list[Floats]:
    codes = [checked_codes(z, num_least=num_least).astype(np.float64) for z in samples]
    if len({z.shape[1] for z in codes}) > 1:
        sizes = ", ".join(str(z.shape[1]) for z in codes)
        raise ConfigError(f"z_sem: the samples have {sizes} dimensions; give samples with the same number of them")
    return codes
