"""Feature sets to probe: z_sem, and baselines computed from images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.probes import Floats, pca_features

Extract: TypeAlias = Callable[[NDArray[np.intp]], Floats]


PCA_NAME, INTENSITY_NAME = "PCA of pixels", "intensity statistics"


_LARGEST = 1e100  # the squares of many larger ones, summed, overflow


_DECILES = np.arange(10, 100, 10)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of the cases of a table of embeddings.

    Attributes:
        name: for people.
        there: ``[N]``, which of the table's cases have them.
        extract: the features ``[N, D]`` of all cases (whatever it may be of those without), for the positions of the
            training cases: what is fitted to the data sees those alone.
        standardise: whether a probe brings each feature to the same scale.
        columns: the features' names, where they have some.
    """

    name: str
    there: NDArray[np.bool_]
    extract: Extract
    standardise: bool = True
    columns: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, name: str, values: NDArray[Any], there: NDArray[np.bool_] | None = None, columns: Sequence[str] = ()
    ) -> FeatureSet:
        """Features that are fitted to nothing.

        Raises:
            ConfigError: values that are not finite or above 1e100, or none at all.
        """
        x = np.asarray(values, np.float64)
        there = np.ones(len(x), bool) if there is None else there
        if x.ndim != 2 or x.shape[1] == 0:
            raise ConfigError(f"{name}: it has no features; a row a case and a column a feature are needed")
        is_usable = np.abs(x[there]) <= _LARGEST  # no NaN is
        if not is_usable.all():
            count = int((~is_usable).any(axis=1).sum())
            raise ConfigError(
                f"{name}: the features of {count} cases hold values that are too large or not finite; fill them in, or "
                "leave those cases out of the table"
            )
        return cls(name, there, lambda train: x, columns=tuple(columns))

    @classmethod
    def pca(cls, images: NDArray[Any], dims: int, there: NDArray[np.bool_] | None = None) -> FeatureSet:
        """Principal components of the pixels ``[N, ...]``, fitted to the training cases alone."""
        there = np.ones(len(images), bool) if there is None else there
        known: dict[bytes, Floats] = {}  # targets without missing labels have the same training cases

        def extract(train: NDArray[np.intp]) -> Floats:
            key = np.sort(train).tobytes()
            if key not in known:
                known.clear()
                applied = pca_features(images[train], images[there], dims)[1]
                x = np.full((len(images), applied.shape[1]), np.nan)
                x[there] = applied
                known[key] = x
            return known[key]

        return cls(PCA_NAME, there, extract, standardise=False)


def intensity_statistics(images: NDArray[np.floating[Any]]) -> Floats:
    """Mean, standard deviation, skewness, kurtosis and deciles of each channel; ``[N, C * 13]`` of ``[N, C, *S]``.

    Example:
        >>> intensity_statistics(np.arange(32.0).reshape(2, 1, 4, 4)).shape
        (2, 13)
    """
    from scipy import stats

    def of(image: NDArray[Any]) -> Floats:
        pixels = image.reshape(len(image), -1).astype(np.float64)
        moments = [pixels.mean(axis=1), pixels.std(axis=1), stats.skew(pixels, axis=1), stats.kurtosis(pixels, axis=1)]
        return np.nan_to_num(np.stack([*moments, *np.percentile(pixels, _DECILES, axis=1)])).ravel()

    return np.stack([of(image) for image in images])
