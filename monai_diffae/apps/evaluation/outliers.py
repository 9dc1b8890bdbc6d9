"""How unusual cases are beside the training cases: their distance in z_sem, and what decoding them gets wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from monai_diffae.data.embeddings import z_of
from monai_diffae.diffusion.noise import seed_of
from monai_diffae.latents import LatentStatistics
from monai_diffae.latents.neighbors import nearest_neighbours, p_values
from monai_diffae.latents.whitening import whitening

Floats = NDArray[np.float64]

_UNUSUAL = 0.05
_FOLDS = 10


@dataclass(frozen=True, eq=False)
class TrainingCases:
    """What other cases are measured by.

    Attributes:
        rows: those of the embeddings that are for training.
        statistics: of their z_sem.
    """

    rows: pd.DataFrame
    statistics: LatentStatistics

    @classmethod
    def of(cls, rows: pd.DataFrame) -> TrainingCases:
        """Of these rows.

        Raises:
            ConfigError: fewer than two cases, or all are the same.
        """
        return cls(rows, LatentStatistics.of(z_of(rows)))

    def normalised(self, rows: pd.DataFrame) -> NDArray[np.floating[Any]]:
        """z_sem (N, D) of other rows, in the training cases' standard deviations."""
        return self.statistics.normalise(z_of(rows))

    def distances(self, rows: pd.DataFrame, k: int, whitened: bool) -> Floats:
        """The mean distance (N,) of cases to their k nearest training cases.

        Whitened, each case is measured in units fitted to nine tenths of the training patients, never to its own: a
        training case as if it were none, and others in the same way, so that their scores can be compared.

        Args:
            rows: the cases; of training patients, only others count.
            k: how many.
            whitened: in units of how the training cases vary in each direction, not only in each dimension.

        Raises:
            ConfigError: there are not as many.
        """
        if not whitened:
            return self._distances(rows, k, np.eye(z_of(self.rows).shape[1]))
        names, place = np.unique(patients_of(self.rows), return_inverse=True)
        num_folds = min(_FOLDS, len(names))
        fold_of = {str(name): i % num_folds for i, name in enumerate(names)}
        fold = np.array([
            fold_of[name] if name in fold_of else seed_of("units", name) % num_folds
            for name in patients_of(rows).tolist()
        ])  # fmt: skip
        scores = np.empty(len(rows))
        for i in np.unique(fold):
            axes = whitening(self.normalised(self.rows[place % num_folds != i]))
            scores[fold == i] = self._distances(rows[fold == i], k, axes)
        return scores

    def own_distances(self, k: int, whitened: bool) -> Floats:
        """The same of the training cases themselves, as if they were not: of others' cases, and in others' units.

        Raises:
            ConfigError: there are not as many.
        """
        return self.distances(self.rows, k, whitened)

    def _distances(self, rows: pd.DataFrame, k: int, axes: Floats) -> Floats:
        z_norm, z_train = (self.normalised(each) @ axes for each in (rows, self.rows))
        return nearest_neighbours(z_norm, z_train, k, patients_of(rows), patients_of(self.rows)).distances.mean(axis=1)


def patients_of(rows: pd.DataFrame) -> NDArray[np.str_]:
    """Whose the cases are; each a patient's of its own where the table does not say."""
    return rows["patient" if "patient" in rows else "id"].to_numpy(str)


def splits_of(rows: pd.DataFrame) -> NDArray[np.str_]:
    """The splits of the cases; ``train`` where the table does not say."""
    return rows["split"].to_numpy(str) if "split" in rows else np.full(len(rows), "train")


def with_gaps(outliers: pd.DataFrame, gaps: pd.DataFrame, reference: pd.DataFrame, are_of_table: bool) -> pd.DataFrame:
    """The table of outliers with what decoding gets wrong, and the p-values of that.

    Args:
        outliers: with a column ``id``.
        gaps: a row a case by its id; those that could not be decoded are missing, and get NaN.
        reference: the same of training cases.
        are_of_table: whether the same id is the same case in both.
    """
    ids = outliers["id"].to_numpy(str)
    own = np.isin(ids, reference.index.to_numpy(str)) & are_of_table
    for name, values in gaps.reindex(ids).items():
        scores = values.to_numpy(np.float64)
        outliers = outliers.assign(**{str(name): scores, f"p_{name}": p_values(scores, reference[name], own)})
    return outliers


def unusual_shares(splits: ArrayLike, p: ArrayLike) -> dict[str, float]:
    """Of each split, the share of cases whose p-value is below .05; those without one do not count.

    Example:
        >>> unusual_shares(["train", "val", "val"], [0.5, 0.01, 0.5])
        {'train': 0.0, 'val': 0.5}
    """
    known = pd.Series(np.asarray(p), index=np.asarray(splits, str)).dropna()
    return {str(name): float(share) for name, share in known.lt(_UNUSUAL).groupby(level=0).mean().items()}
