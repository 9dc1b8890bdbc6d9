"""Principal components of the pixels of images: the baseline of every probe, and an embedding without any training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEW_IMAGES = 500


@dataclass(frozen=True, eq=False)
class PixelComponents:
    """Principal components of P pixels.

    Attributes:
        mean: ``[P]``, the mean of the images.
        axes: ``[K, P]``, the components, scaled so that the K features have a standard deviation of about 1.

    Example:
        >>> images = np.random.default_rng(0).normal(size=(20, 1, 4, 4))
        >>> PixelComponents.fit([images[:15]], 8).features(images[15:]).shape
        (5, 8)
    """

    mean: NDArray[np.floating[Any]]
    axes: NDArray[np.floating[Any]]

    @classmethod
    def fit(cls, batches: Iterable[NDArray[np.floating[Any]]], dims: int) -> PixelComponents:
        """Fit components to images. The same images give the same components to the bit.

        Args:
            batches: one array ``[N, ...]`` of all images, or several for the incremental algorithm, which holds one of
                them in memory. Each of several batches needs more images than ``dims``.
            dims: number of components; fewer if there are not as many images or pixels (N images span N - 1).
        """
        from sklearn.decomposition import PCA, IncrementalPCA

        iterator = iter(batches)
        first, second = _flat(next(iterator)), next(iterator, None)
        num = max(1, min(dims, len(first) - 1, first.shape[1]))
        if second is None:
            # the randomised solver is faster, but with few images it is inaccurate for the last components
            solver = "full" if min(first.shape) <= _FEW_IMAGES else "auto"
            pca = PCA(num, svd_solver=solver, random_state=0).fit(first)
        else:
            pca = IncrementalPCA(num).partial_fit(first).partial_fit(_flat(second))
            for batch in iterator:
                pca.partial_fit(_flat(batch))
        scale = np.sqrt(pca.explained_variance_.mean()) or 1.0
        return cls(pca.mean_, (pca.components_ / scale).astype(pca.components_.dtype))

    def features(self, images: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """The features ``[N, K]`` of images ``[N, ...]``."""
        return (_flat(images) - self.mean) @ self.axes.T


def _flat(images: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return images.reshape(len(images), -1)
