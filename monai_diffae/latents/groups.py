"""Groups of cases, such as patients, as numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def numbered_groups(groups: ArrayLike) -> NDArray[np.intp]:
    """Number groups in the order of their first cases.

    Patients are hashed with a key that differs between folders. Folds and draws of these numbers are the same in all
    of them, those of the hashes are not.

    Args:
        groups: ``[N]``, the group of each case.

    Returns:
        ``[N]``, numbers from 0.

    Example:
        >>> numbered_groups(["f00", "a11", "f00", "c22"])
        array([0, 1, 0, 2])
    """
    _, first, member = np.unique(np.asarray(groups).astype(str), return_index=True, return_inverse=True)
    numbers: NDArray[np.intp] = np.argsort(np.argsort(first))[member]
    return numbers
