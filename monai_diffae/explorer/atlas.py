"""The map of a cohort's z_sem: coordinates, neighbors, outlier scores and positions along principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.apps.evaluation.outliers import TrainingCases, patients_of, splits_of
from monai_diffae.apps.synthesis.combination import components_of
from monai_diffae.data.cases import Case
from monai_diffae.data.embeddings import MAP_COLUMNS, label_columns, read_embeddings, split_rows, z_matrix
from monai_diffae.errors import CohortError
from monai_diffae.latents import PrincipalComponents
from monai_diffae.latents.neighbors import nearest_neighbors, p_values

Floats = NDArray[np.float64]

_NUM_NEIGHBORS = 5


@dataclass(frozen=True, eq=False)
class Atlas:
    """A table of embeddings whose rows are cases of a cohort.

    Attributes:
        table: one row per case.
        cases: the case of each row.
        training: the training cases.
        components: the principal components of the training cases, at least two.
    """

    table: pd.DataFrame
    cases: Sequence[Case]
    training: TrainingCases
    components: PrincipalComponents

    @classmethod
    def open(cls, embeddings: Path, cases: Sequence[Case], num_components: int) -> Atlas:
        """Read a table, and keep the rows whose cases are in the cohort.

        Raises:
            CohortError: the table cannot be used, or has no case of the cohort.
            ConfigError: there are too few training cases.
        """
        table = read_embeddings(embeddings)
        if "id" not in table or table["id"].duplicated().any():
            raise CohortError(f"{embeddings.name}: has no column id with a unique name for each case; embed again")
        training_rows = split_rows(table, "train") if "split" in table else table
        by_id = {case.id: case for case in cases}
        table = table[table["id"].astype(str).isin(by_id)].reset_index(drop=True)
        if table.empty:
            raise CohortError(f"{embeddings.name}: has no case of this cohort; embed the cohort, or give its own table")
        z_train = z_matrix(training_rows)
        count = min(num_components, len(z_train) - 1, z_train.shape[1])
        components = components_of(z_train, count)
        listed = [by_id[str(name)] for name in table["id"]]
        return cls(table, listed, TrainingCases.from_rows(training_rows), components)

    @cached_property
    def z_norm(self) -> NDArray[np.floating[Any]]:
        """Normalised z_sem (N, D)."""
        return self.training.normalised(self.table)

    @cached_property
    def positions(self) -> Floats:
        """Positions (N, K) along the components, in standard deviations of the training cases."""
        return self.positions_of(self.z_norm)

    def positions_of(self, z_norm: NDArray[np.floating[Any]]) -> Floats:
        """Positions (N, K) of normalised z_sem (N, D) along the components."""
        stds = np.where(self.components.stds > 0, self.components.stds, 1)
        return np.asarray(z_norm @ self.components.directions.T / stds)

    @cached_property
    def is_pca(self) -> bool:
        """Whether the map shows the first two components, not other columns ``x`` and ``y`` of the table."""
        return bool(np.allclose(self.coordinates, self._first_two, atol=1e-3))

    @cached_property
    def coordinates(self) -> Floats:
        """Where cases lie on the map (N, 2): columns ``x``, ``y`` of the table, else the first two components."""
        if set(MAP_COLUMNS) <= set(self.table.columns):
            return self.table[["x", "y"]].to_numpy(np.float64)
        return self._first_two

    @property
    def _first_two(self) -> Floats:
        two = self.positions[:, :2] * self.components.stds[:2]
        return np.pad(two, ((0, 0), (0, 2 - two.shape[1])))

    @property
    def labels(self) -> dict[str, list[Any]]:
        """The label columns; missing values are None."""
        columns = {name: self.table[name].astype(object) for name in label_columns(self.table)}
        return {name: [_plain(value) for value in column] for name, column in columns.items() if column.notna().any()}

    @property
    def splits(self) -> list[str]:
        """The split of each case."""
        return [str(name) for name in splits_of(self.table)]

    def neighbors(self, row: int) -> list[tuple[int, float]]:
        """The nearest cases of other patients: rows and distances, nearest first."""
        patients = patients_of(self.table)
        count = min(_NUM_NEIGHBORS, int((patients != patients[row]).sum()))
        if count == 0:
            return []
        nearest = nearest_neighbors(self.z_norm[[row]], self.z_norm, count, patients[[row]], patients)
        return list(zip(nearest.indices[0].tolist(), nearest.distances[0].tolist(), strict=True))

    def nearest_other(self, z_norm: NDArray[np.floating[Any]], row: int) -> tuple[int, float] | None:
        """The case of another patient that is nearest to a normalised z_sem (D,): its row and distance."""
        is_other = self._patients != self._patients[row]
        if not is_other.any():
            return None
        distances = np.where(is_other, np.linalg.norm(self.z_norm - z_norm, axis=1), np.inf)
        nearest = int(distances.argmin())
        return nearest, float(distances[nearest])

    @cached_property
    def outliers(self) -> tuple[Floats, Floats]:
        """The outlier score of each case (``whitened`` of the command ``neighbors``) and its p-value, (N,) each.

        Raises:
            ConfigError: there are too few training cases of other patients.
        """
        training, is_train = self.training, self.table["id"].isin(self.training.rows["id"]).to_numpy()
        reference = training.own_distances(_NUM_NEIGHBORS, whitened=True)
        scores = np.empty(len(self.table))
        by_id = dict(zip(training.rows["id"], reference, strict=True))
        scores[is_train] = [by_id[name] for name in self.table["id"][is_train]]
        if not is_train.all():
            scores[~is_train] = training.distances(self.table[~is_train], _NUM_NEIGHBORS, whitened=True)
        return scores, p_values(scores, reference, is_train)

    @cached_property
    def _patients(self) -> NDArray[np.str_]:
        return patients_of(self.table)


def _plain(value: Any) -> Any:
    if value is None or value != value or value is pd.NA:
        return None
    return value.item() if hasattr(value, "item") else value
