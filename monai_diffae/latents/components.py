"""Principal components of z_sem: the directions in which a cohort varies most, without any label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import Codes, LatentStatistics, checked_codes

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """Directions of normalised z_sem, the one with the largest variance first.

    Attributes:
        directions: ``[K, D]``, orthonormal; the loading with the largest absolute value is positive.
        spreads: ``[K]``, the standard deviation of the training cases along each.
        explained: ``[K]``, the share of the variance of normalised z_sem that each has, from 0 to 1.
        statistics: what z_sem is normalised with.
    """

    directions: Floats
    spreads: Floats
    explained: Floats
    statistics: LatentStatistics

    def walk(self, z: ArrayLike, component: int, amounts: Sequence[float]) -> Codes:
        """A case moved along a component: ``z_norm + amount * spread * direction``, de-normalised.

        Args:
            z: ``[D]`` or ``[1, D]``, not normalised.
            component: which, from 0.
            amounts: ``[A]``, in standard deviations of the training cases; at 0, z comes back bit by bit.

        Returns:
            ``[A, D]``, in the dtype of ``z``.

        Raises:
            ConfigError: no such component, amounts that are not finite, or another z_sem.
        """
        if not 0 <= component < len(self.directions):
            raise ConfigError(f"component: {component} is not one of 0 to {len(self.directions) - 1}")
        if not np.isfinite(amounts).all():
            raise ConfigError("amounts: they must be finite numbers")
        start = checked_codes(z, self.statistics.z_channels)
        if start.size != self.statistics.z_channels:
            raise ConfigError(f"z_sem: a walk starts from one case, not from {len(start)}")
        step = self.spreads[component] * self.directions[component]
        return np.stack([self.statistics.moved(start.reshape(-1), amount * step) for amount in amounts])


def principal_components(z: ArrayLike, statistics: LatentStatistics, count: int) -> PrincipalComponents:
    """The principal components of normalised z_sem.

    Args:
        z: the training cases' ``[N, D]``, not normalised.
        statistics: what to normalise them with.
        count: how many components, at most N - 1 and D.

    Raises:
        ConfigError: more components than there can be, fewer than 2 cases, or z_sem that does not fit ``statistics``.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(200, 1)) * [3.0, 4.0]
        >>> found = principal_components(z, LatentStatistics.of(z), 1)
        >>> found.directions.round(3), found.spreads.round(3), found.explained.round(3)
        (array([[0.707, 0.707]]), array([1.414]), array([1.]))
        >>> found.walk([0.0, 0.0], 0, [-1, 0, 1]).shape
        (3, 2)
    """
    from sklearn.decomposition import PCA

    codes = checked_codes(z, statistics.z_channels, num_least=2).astype(np.float64)
    most = min(len(codes) - 1, statistics.z_channels)
    if not 1 <= count <= most:
        raise ConfigError(
            f"components: {count} cannot be found in {len(codes)} cases of {statistics.z_channels} dimensions; "
            f"choose 1 to {most}"
        )
    # "full": the same whatever the sizes; scikit-learn would choose a randomised solver for few components of many
    pca = PCA(count, svd_solver="full").fit(statistics.normalise(codes))
    largest = np.abs(pca.components_).argmax(axis=1)
    directions = pca.components_ * np.sign(pca.components_[np.arange(count), largest])[:, None]
    # over N, as the statistics have it; scikit-learn divides by N - 1
    spreads = np.sqrt(pca.explained_variance_ * (len(codes) - 1) / len(codes))
    return PrincipalComponents(directions, spreads, pca.explained_variance_ratio_, statistics)
