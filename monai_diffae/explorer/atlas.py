"""The map of a cohort's z_sem: coordinates, neighbors, outliers, components, and the scores of edited images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.apps.evaluation.neighbors import TrainingCases
from monai_diffae.apps.synthesis.decode import Axes
from monai_diffae.data import embeddings as tables
from monai_diffae.data.cases import Case
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents import Direction, PrincipalComponents, principal_components
from monai_diffae.latents.directions import travel
from monai_diffae.latents.neighbors import nearest_neighbors
from monai_diffae.latents.statistics import ACTIVE_SHARE, Codes, Floats

_NUM_NEIGHBORS = 5
_NUM_EXTREMES = 4  # extreme components without a fixed slider that every case shows
_UNUSUAL, _TYPICAL = 2.5, 2.0  # whitened standard deviations


@dataclass(frozen=True)
class Extreme:
    """The position of a case along a component."""

    component: int  # from 1
    position: float  # in standard deviations of the training cases
    whitened: float  # the same as the outlier score counts it
    share: float  # of the squared whitened distance from the mean

    @property
    def to_typical(self) -> float:
        """The move, in standard deviations, to the border of what is usual on the same side; 0: it is usual."""
        return (_TYPICAL / abs(self.whitened) - 1) * self.position if abs(self.whitened) > _UNUSUAL else 0.0


@dataclass(frozen=True, eq=False)
class Atlas:
    """A table of embeddings whose rows are cases of a cohort, with all principal components of the training cases."""

    table: pd.DataFrame
    cases: Sequence[Case]
    training: TrainingCases
    components: PrincipalComponents
    num_components: int

    @classmethod
    def open(cls, embeddings: Path, cases: Sequence[Case], num_components: int) -> "Atlas":
        """Read a table, and keep the rows whose cases are in the cohort."""
        table = tables.read_embeddings(embeddings)
        ids = tables.case_ids(table, embeddings.name)
        training = tables.training_rows(table)
        by_id = {case.id: case for case in cases}
        table = table[np.isin(ids, list(by_id))].reset_index(drop=True)
        if table.empty:
            raise CohortError(f"{embeddings.name}: has no case of this cohort; embed the cohort, or give its own table")
        components = principal_components(tables.z_matrix(training))
        listed = [by_id[str(name)] for name in table["id"]]
        num_shown = min(num_components, len(components.directions))
        return cls(table, listed, TrainingCases.from_rows(training), components, num_shown)

    @cached_property
    def z_norm(self) -> Codes:
        """Normalised z_sem (N, D)."""
        return self.training.normalised(self.table)

    @cached_property
    def positions(self) -> Floats:
        """Positions (N, K) along the components, in standard deviations of the training cases."""
        return self.positions_of(self.z_norm)

    def positions_of(self, z_norm: Codes) -> Floats:
        """Positions (N, K) of normalised z_sem (N, D) along the components."""
        stds = np.where(self.components.stds > 0, self.components.stds, 1)
        return np.asarray(z_norm @ self.components.directions.T / stds)

    def extremes(self, row: int) -> list[Extreme]:
        """The components along which a case is most extreme, the most extreme first."""
        # all unusual ones, and always enough that some have no fixed slider; whitened as in the outlier score, so that
        # a component along which the training cases hardly vary counts less than its standard deviations suggest
        stds, positions = self.components.stds, self.positions[row]
        whitened = positions * stds / np.sqrt(stds**2 + ACTIVE_SHARE)
        shares = whitened**2 / max(float((whitened**2).sum()), np.finfo(float).tiny)
        count = max(int((np.abs(whitened) > _UNUSUAL).sum()), self.num_components + _NUM_EXTREMES)
        order = np.argsort(-np.abs(whitened), kind="stable")[:count]
        return [Extreme(k + 1, *(float(each[k]) for each in (positions, whitened, shares))) for k in order.tolist()]

    @cached_property
    def is_pca(self) -> bool:
        """Whether the map shows the first two components, not other columns ``x`` and ``y`` of the table."""
        return bool(np.allclose(self.coordinates, self._first_two, atol=1e-3))

    @cached_property
    def coordinates(self) -> Floats:
        """Where cases lie on the map (N, 2): columns ``x``, ``y`` of the table, else the first two components."""
        if set(tables.MAP_COLUMNS) <= set(self.table.columns):
            return self.table[["x", "y"]].to_numpy(np.float64)
        return self._first_two

    @property
    def _first_two(self) -> Floats:
        two = self.positions[:, :2] * self.components.stds[:2]
        return np.pad(two, ((0, 0), (0, 2 - two.shape[1])))

    @property
    def labels(self) -> dict[str, list[Any]]:
        """The label columns; missing values are None."""
        columns = {name: self.table[name].astype(object) for name in tables.label_columns(self.table)}
        return {name: [_plain(value) for value in column] for name, column in columns.items() if column.notna().any()}

    @property
    def splits(self) -> list[str]:
        """The split of each case."""
        return [str(name) for name in tables.splits_of(self.table)]

    def neighbors(self, row: int) -> list[tuple[int, float]]:
        """The nearest cases of other patients: rows and distances, nearest first."""
        patients = self._patients
        count = min(_NUM_NEIGHBORS, int((patients != patients[row]).sum()))
        if count == 0:
            return []
        nearest = nearest_neighbors(self.z_norm[[row]], self.z_norm, count, patients[[row]], patients)
        return list(zip(nearest.indices[0].tolist(), nearest.distances[0].tolist(), strict=True))

    def nearest_other(self, z_norm: Codes, row: int) -> tuple[int, float] | None:
        """The case of another patient that is nearest to a normalised z_sem (D,): its row and distance."""
        is_other = self._patients != self._patients[row]
        if not is_other.any():
            return None
        distances = np.where(is_other, np.linalg.norm(self.z_norm - z_norm, axis=1), np.inf)
        nearest = int(distances.argmin())
        return nearest, float(distances[nearest])

    @cached_property
    def outliers(self) -> tuple[Floats, Floats]:
        """The outlier score of each case (``whitened`` of the command ``neighbors``) and its p-value, (N,) each."""
        reference = self.training.reference.own_distances(_NUM_NEIGHBORS, whitened=True)
        return self.training.scores(self.table, reference, _NUM_NEIGHBORS, whitened=True)

    def outlier_scores_of(self, z_sem: Codes, row: int) -> list[float] | None:
        """The outlier scores of images of a case, as z_sem (N, D); None: there are too few training cases."""
        patients = np.repeat(self.training.groups_of(self.table.iloc[[row]]), len(z_sem))
        try:
            scores = self.training.reference.distances(z_sem, patients, _NUM_NEIGHBORS, whitened=True)
        except ConfigError:
            return None
        return [float(score) for score in scores]

    @cached_property
    def _patients(self) -> NDArray[np.str_]:
        return tables.patients_of(self.table)


def scores_of(atlas: Atlas, axes: Axes, row: int, codes: Mapping[str, Codes], *, is_preview: bool) -> dict[str, Any]:
    """The scores of an image of a case.

    ``codes`` are z_sem (1, D): ``case``, ``target`` (what was decoded) and, if it is known, ``image`` (of the decoded
    image). A preview, decoded with few steps, has no outlier scores, which take a while.
    """
    z_norm, z_norm_case = map(atlas.training.reference.normalised, (codes.get("image", codes["target"]), codes["case"]))
    nearest_row, nearest = atlas.nearest_other(z_norm[0], row) or (None, None)
    outlier = None if is_preview else atlas.outlier_scores_of(np.concatenate(list(codes.values())), row)
    return {
        "directions": [_along(name, each, codes) for name, each in axes.directions.items()],
        "to_itself": float(np.linalg.norm(z_norm - z_norm_case)),
        "nearest": nearest,
        "nearest_row": nearest_row,
        "outlier": None if outlier is None else dict(zip(codes, outlier, strict=True)),
        "components": atlas.positions_of(z_norm)[0].tolist(),
    }


def _along(name: str, direction: Direction, codes: Mapping[str, Codes]) -> dict[str, Any]:
    values = {key: float(direction.predict(z)[0]) for key, z in codes.items()}
    if "image" in codes:
        values["drift"] = float(travel(direction, codes["case"], codes["image"])[0])
    return {"name": name, **values}


def _plain(value: Any) -> Any:
    if value is None or value != value or value is pd.NA:
        return None
    return value.item() if hasattr(value, "item") else value
