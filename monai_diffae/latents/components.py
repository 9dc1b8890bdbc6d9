"""Principal components, without any label: of z_sem, and of the pixels of images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import Codes, Floats, LatentStatistics, checked_codes

_FEW_IMAGES = 500


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """Principal components of normalised z_sem, the one with the largest variance first."""

    directions: Floats  #: ``[K, D]``, orthonormal; the loading with the largest absolute value is positive
    stds: Floats  #: ``[K]``, the standard deviation of the training cases along each component
    explained: Floats  #: ``[K]``, each component's share of the variance of normalised z_sem, from 0 to 1
    statistics: LatentStatistics  #: the statistics that normalise z_sem

    def coordinates(self, z: ArrayLike) -> Floats:
        """Where cases ``[N, D]`` lie along the components: ``[N, K]``, in normalised z_sem."""
        return np.asarray(self.statistics.normalise(z) @ self.directions.T, np.float64)

    def traverse(self, z: ArrayLike, component: int, strengths: Sequence[float]) -> Codes:
        """Move a case along a component: ``z_norm + strength * std * direction``, denormalised.

        Args:
            z: ``[D]`` or ``[1, D]``, not normalised.
            component: index of the component, from 0.
            strengths: ``[A]``, in standard deviations of the training cases; strength 0 returns z bit by bit.

        Returns:
            ``[A, D]``, in the dtype of ``z``.
        """
        if not 0 <= component < len(self.directions):
            raise ConfigError(f"component: {component} is not one of 0 to {len(self.directions) - 1}")
        start = checked_codes(np.ravel(z), self.statistics.z_channels)
        step = self.stds[component] * self.directions[component]
        return np.stack([self.statistics.moved(start, strength * step) for strength in strengths])


def principal_components(
    z: ArrayLike, statistics: LatentStatistics | None = None, count: int | None = None
) -> PrincipalComponents:
    """Compute the principal components of normalised z_sem.

    Args:
        z: z_sem of the training cases, ``[N, D]``, not normalised.
        statistics: the statistics that normalise them; None: their own.
        count: number of components, at most N - 1 and D; None: as many.

    Raises:
        ConfigError: ``count`` is out of range, there are fewer than 2 cases, or z_sem does not fit ``statistics``.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(200, 1)) * [3.0, 4.0]
        >>> components = principal_components(z, count=1)
        >>> components.directions.round(3), components.stds.round(3), components.explained.round(3)
        (array([[0.707, 0.707]]), array([1.414]), array([1.]))
        >>> components.traverse([0.0, 0.0], 0, [-1, 0, 1]).shape
        (3, 2)
    """
    from sklearn.decomposition import PCA

    statistics = statistics or LatentStatistics.of(z)
    codes = checked_codes(z, statistics.z_channels, num_least=2).astype(np.float64)
    most = min(len(codes) - 1, statistics.z_channels)
    count = most if count is None else count
    if not 1 <= count <= most:
        raise ConfigError(
            f"num_components: {count} components cannot be computed from {len(codes)} cases with "
            f"{statistics.z_channels} dimensions; choose 1 to {most}"
        )
    # "full" gives the same result for every size; scikit-learn may choose a randomised solver otherwise
    pca = PCA(count, svd_solver="full").fit(statistics.normalise(codes))
    largest = np.abs(pca.components_).argmax(axis=1)
    directions = pca.components_ * np.sign(pca.components_[np.arange(count), largest])[:, None]
    # divided by N, as in the statistics; scikit-learn divides by N - 1
    stds = np.sqrt(pca.explained_variance_ * (len(codes) - 1) / len(codes))
    return PrincipalComponents(directions, stds, pca.explained_variance_ratio_, statistics)


@dataclass(frozen=True, eq=False)
class PixelComponents:
    """Principal components [K, P] of P pixels, scaled so that the features have a standard deviation of about 1."""

    mean: NDArray[np.floating[Any]]
    axes: NDArray[np.floating[Any]]

    @classmethod
    def fit(cls, batches: Iterable[NDArray[np.floating[Any]]], dims: int) -> "PixelComponents":
        """Fit at most ``dims`` components to batches of images ``[N, ...]``; several, each with more, one by one."""
        from sklearn.decomposition import PCA, IncrementalPCA

        iterator = map(_flat, batches)
        first, second = next(iterator), next(iterator, None)
        num = max(1, min(dims, len(first) - 1, first.shape[1]))
        if second is None:
            # the randomised solver is faster, but with few images it is inaccurate for the last components
            solver = "full" if min(first.shape) <= _FEW_IMAGES else "auto"
            pca = PCA(num, svd_solver=solver, random_state=0).fit(first)
        else:
            pca = IncrementalPCA(num).partial_fit(first).partial_fit(second)
            for batch in iterator:
                pca.partial_fit(batch)
        scale = np.sqrt(pca.explained_variance_.mean()) or 1.0
        return cls(pca.mean_, (pca.components_ / scale).astype(pca.components_.dtype))

    def features(self, images: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """The features ``[N, K]`` of images ``[N, ...]``."""
        return (_flat(images) - self.mean) @ self.axes.T


def _flat(images: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return images.reshape(len(images), -1)
