"""Find twins by their z_sem: cases of different patients whose z_sem are the same, or nearly."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.latents.neighbors import nearest_neighbors
from monai_diffae.latents.statistics import checked_codes

logger = logging.getLogger(__name__)

_NEIGHBORS = 3  # a case may have this many twins, less one
_CLOSE = 0.15  # of the usual distance to the last of these neighbors
_MOST_COMPARED = 20_000


def near_pairs(z: ArrayLike, patients: ArrayLike) -> NDArray[np.intp]:
    """Find pairs of cases of different patients whose z_sem are much closer than those of neighbors usually are.

    Images that were saved again have nearly the same z_sem. Those of cropped or brighter copies may be as different as
    those of other patients, depending on the encoder.

    Args:
        z: ``[N, D]``.
        patients: ``[N]``.

    Returns:
        ``[P, 2]``, the rows of each pair, ascending; none for fewer than 4 patients or more than 20,000 cases.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(50, 16))
        >>> near_pairs([*z, z[7] + 0.001], [str(i) for i in range(51)])
        array([[ 7, 50]])
    """
    x, groups = checked_codes(z, num_least=1).astype(np.float64), np.asarray(patients, str)
    _, sizes = np.unique(groups, return_counts=True)
    if len(x) > _MOST_COMPARED:
        logger.info("%d cases are too many to compare all z_sem: twins are not sought", len(x))
    if len(x) > _MOST_COMPARED or len(sizes) <= _NEIGHBORS or len(x) - sizes.max() < _NEIGHBORS:
        return np.empty((0, 2), np.intp)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), np.finfo(float).tiny)
    neighbors = nearest_neighbors(x, x, _NEIGHBORS, groups, groups)
    limit = _CLOSE * np.median(neighbors.distances[:, -1])
    rows, columns = np.nonzero(neighbors.distances < limit)
    pairs = np.stack([rows, neighbors.indices[rows, columns]], axis=1)
    return np.unique(np.sort(pairs, axis=1), axis=0)
