"""Outlier scores of cases relative to the training cases: distances in z_sem, and reconstruction errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from monai_diffae.data.embeddings import encoder_name, z_matrix
from monai_diffae.diffusion.noise import seed_of
from monai_diffae.latents.neighbors import ReferenceCases, p_values

Floats = NDArray[np.float64]

_UNUSUAL = 0.05


@dataclass(frozen=True, eq=False)
class TrainingCases:
    """The training cases, with which all cases are compared.

    Attributes:
        rows: the training rows of the embeddings.
        reference: their z_sem and patients.
    """

    rows: pd.DataFrame
    reference: ReferenceCases

    @classmethod
    def from_rows(cls, rows: pd.DataFrame) -> TrainingCases:
        """The training cases of a table of embeddings.

        Raises:
            ConfigError: there are fewer than two cases, or all are the same.
        """
        names, is_pca = _named_after_cases(rows, rows), encoder_name(rows) == "pca"
        return cls(rows, ReferenceCases.of(z_matrix(rows), names, common_scale=is_pca))

    def normalised(self, rows: pd.DataFrame) -> NDArray[np.floating[Any]]:
        """z_sem (N, D) of any rows, scaled by the standard deviations of the training cases."""
        return self.reference.normalised(z_matrix(rows))

    def sample(self, count: int, seed: int) -> list[str]:
        """The ids of at most ``count`` random training cases; they do not depend on the order of the table."""
        return sorted(self.rows["id"].astype(str), key=lambda name: seed_of(seed, "reference", name))[:count]

    def distances(self, rows: pd.DataFrame, k: int, whitened: bool) -> Floats:
        """The :meth:`~monai_diffae.latents.neighbors.ReferenceCases.distances` (N,) of rows of a table.

        Raises:
            ConfigError: there are fewer than k training cases of other patients.
        """
        return self.reference.distances(z_matrix(rows), self.groups_of(rows), k, whitened)

    def groups_of(self, rows: pd.DataFrame) -> NDArray[np.str_]:
        """The patient (N,) of rows of a table, under the name that it has in ``reference``."""
        return _named_after_cases(rows, self.rows)

    def own_distances(self, k: int, whitened: bool) -> Floats:
        """The :meth:`distances` of the training cases themselves.

        Raises:
            ConfigError: there are fewer than k training cases of other patients.
        """
        return self.reference.own_distances(k, whitened)


def patients_of(rows: pd.DataFrame) -> NDArray[np.str_]:
    """The patient of each case; the case itself if the table has no column ``patient``."""
    return rows["patient" if "patient" in rows else "id"].to_numpy(str)


def _named_after_cases(rows: pd.DataFrame, training: pd.DataFrame) -> NDArray[np.str_]:
    """The patient of each case: the first id of its training cases, else its own id.

    The names decide which tenth of the training patients a score leaves out. The hashes in the column ``patient`` would
    give other scores in each folder.
    """
    first: dict[str, str] = {}
    for name, patient in sorted(zip(training["id"].astype(str), patients_of(training).tolist(), strict=True)):
        first.setdefault(patient, f"training {name}")
    own = zip(rows["id"].astype(str), patients_of(rows).tolist(), strict=True)
    return np.array([first.get(patient, f"other {name}") for name, patient in own])


def splits_of(rows: pd.DataFrame) -> NDArray[np.str_]:
    """The split of each case; ``train`` if the table has no column ``split``."""
    return rows["split"].to_numpy(str) if "split" in rows else np.full(len(rows), "train")


def with_reconstruction_errors(
    outliers: pd.DataFrame, errors: pd.DataFrame, reference: pd.DataFrame, *, are_queries: bool
) -> pd.DataFrame:
    """Add reconstruction errors and their p-values to the table of outliers.

    Args:
        outliers: the table, with a column ``id``.
        errors: one row per case, by id; cases that could not be decoded have no row and get NaN.
        reference: the errors of training cases.
        are_queries: whether the cases are of another table, so that equal ids do not mean equal cases.
    """
    ids = outliers["id"].to_numpy(str)
    is_in_reference = np.isin(ids, reference.index.to_numpy(str)) & (not are_queries)
    for name, values in errors.reindex(ids).items():
        scores = values.to_numpy(np.float64)
        p = p_values(scores, reference[name], is_in_reference)
        outliers = outliers.assign(**{str(name): scores, f"p_{name}": p})
    return outliers


def unusual_shares(splits: ArrayLike, p: ArrayLike) -> dict[str, float]:
    """The share of cases with a p-value below .05 in each split; cases without a p-value do not count.

    Example:
        >>> unusual_shares(["train", "val", "val"], [0.5, 0.01, 0.5])
        {'train': 0.0, 'val': 0.5}
    """
    p_by_split = pd.Series(np.asarray(p), index=np.asarray(splits, str)).dropna()
    return {str(name): float(share) for name, share in p_by_split.lt(_UNUSUAL).groupby(level=0).mean().items()}
