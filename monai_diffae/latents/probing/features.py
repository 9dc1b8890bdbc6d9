"""Feature sets to probe: z_sem, tables of features, and baselines computed from images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.probes import Floats, pca_features

Extract: TypeAlias = Callable[[NDArray[np.intp]], Floats]

PCA_NAME, INTENSITY_NAME, WIDE_NAME = "PCA of pixels", "intensity statistics", "wide"

_LARGEST = 1e100  # the sum of the squares of many larger values overflows
_DECILES = np.arange(10, 100, 10)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of the cases of a table of embeddings."""

    name: str  #: the name in results
    is_available: NDArray[np.bool_]  #: ``[N]``, whether a case of the table has the features
    #: maps the positions of the training cases to the features ``[N, D]`` of all cases; whatever is fitted to data,
    #: such as principal components, is fitted to these training cases. Values of cases without the features are
    #: arbitrary
    extract: Extract
    standardise: bool = True  #: whether a probe scales each feature to a standard deviation of 1
    columns: tuple[str, ...] = ()  #: the names of the features, if they have any

    @classmethod
    def from_values(
        cls, name: str, values: NDArray[Any], is_available: NDArray[np.bool_] | None = None,
        columns: Sequence[str] = (), standardise: bool = True,
    ) -> FeatureSet:  # fmt: skip
        """Given features ``[N, D]``; nothing is fitted."""
        x = np.asarray(values, np.float64)
        is_available = np.ones(len(x), bool) if is_available is None else is_available
        if x.ndim != 2 or x.shape[1] == 0:
            raise ConfigError(f"{name}: has no features; give one row per case and one column per feature")
        is_usable = np.abs(x[is_available]) <= _LARGEST  # False for NaN
        if not is_usable.all():
            count = int((~is_usable).any(axis=1).sum())
            raise ConfigError(
                f"{name}: the features of {count} cases contain values that are missing, infinite or too large; fill "
                "them in, or remove these cases from the table"
            )
        return cls(name, is_available, lambda train: x, standardise, tuple(columns))

    @classmethod
    def pca(
        cls, images: NDArray[Any], dims: int, is_available: NDArray[np.bool_] | None = None, name: str = PCA_NAME
    ) -> FeatureSet:
        """Principal components of the pixels of images ``[N, ...]``, fitted to the training cases only."""
        is_available = np.ones(len(images), bool) if is_available is None else is_available
        cache: dict[bytes, Floats] = {}  # targets without missing labels have the same training cases

        def extract(train: NDArray[np.intp]) -> Floats:
            key = np.sort(train).tobytes()
            if key not in cache:
                cache.clear()
                components = pca_features(images[train], images[is_available], dims)[1]
                x = np.full((len(images), components.shape[1]), np.nan)
                x[is_available] = components
                cache[key] = x
            return cache[key]

        return cls(name, is_available, extract, standardise=False)

    @classmethod
    def together(cls, parts: Sequence[FeatureSet]) -> FeatureSet:
        """Several sets side by side, each scaled to the same total variance among the training cases.

        Example:
            >>> one, two = (FeatureSet.from_values(name, np.eye(4) * scale) for name, scale in (("a", 1), ("b", 9)))
            >>> both = FeatureSet.together([one, two])
            >>> both.name, both.extract(np.arange(4)).shape
            ('a + b', (4, 8))
        """

        def extract(train: NDArray[np.intp]) -> Floats:
            scaled = []
            for part in parts:
                x = part.extract(train)
                std = x[train].std(axis=0)
                x = x / np.where(std > 0, std, 1) if part.standardise else x
                scaled.append(x / (np.sqrt(x[train].var(axis=0).sum()) or 1.0))
            num = sum(x.shape[1] for x in scaled)
            return np.concatenate(scaled, axis=1) * np.sqrt(num / len(scaled))  # so that the mean variance is 1

        is_available = np.logical_and.reduce([part.is_available for part in parts])
        return cls(" + ".join(part.name for part in parts), is_available, extract, standardise=False)


def intensity_statistics(images: NDArray[np.floating[Any]]) -> Floats:
    """Mean, standard deviation, skewness, kurtosis and deciles of each channel: ``[N, C, *S]`` -> ``[N, C * 13]``.

    Example:
        >>> intensity_statistics(np.arange(32.0).reshape(2, 1, 4, 4)).shape
        (2, 13)
    """
    from scipy import stats

    def statistics(image: NDArray[Any]) -> Floats:
        pixels = image.reshape(len(image), -1).astype(np.float64)
        moments = [pixels.mean(axis=1), pixels.std(axis=1), stats.skew(pixels, axis=1), stats.kurtosis(pixels, axis=1)]
        return np.nan_to_num(np.stack([*moments, *np.percentile(pixels, _DECILES, axis=1)])).ravel()

    return np.stack([statistics(image) for image in images])
