"""The table of ``edit``: what was requested of each edited image, and what its encoding shows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.apps.provenance import check_same_model, warn_of_other_preprocessing
from monai_diffae.apps.synthesis.direction_files import read_direction
from monai_diffae.bundle import TrainedBundle
from monai_diffae.data.embeddings import patient_key_name, read_embeddings, z_matrix
from monai_diffae.data.patient_keys import PatientKey, key_beside
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents import Direction
from monai_diffae.latents.directions import Along
from monai_diffae.latents.targets import Kind

logger = logging.getLogger(__name__)

_LEAST_ACHIEVED = 0.2  # fraction of the requested strength; below it, a warning is logged

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class OtherPatients:
    """The normalised z_sem of a cohort and the patient of each.

    Attributes:
        z_norm: ``[N, D]``.
        patients: ``[N]``, hashes.
        key: hashes patients as the table does.
    """

    z_norm: Floats
    patients: NDArray[np.str_]
    key: PatientKey

    @classmethod
    def read(cls, embeddings: Path, direction: Direction) -> OtherPatients:
        """Read them from a table of embeddings.

        Raises:
            CohortError: the table has fewer than two patients.
            ConfigError: the key with which its patients were hashed is not beside it.
        """
        table = read_embeddings(embeddings)
        if "patient" not in table or table["patient"].nunique() < 2:
            raise CohortError("embeddings: the table has fewer than two patients; embed a cohort with a column patient")
        key = key_beside(embeddings, patient_key_name(table))
        return cls(direction.statistics.normalise(z_matrix(table)), table["patient"].to_numpy(str), key)

    def nearest(self, z_norm: Floats, patient: str) -> Floats:
        """Return the distance of each z_sem (A, D) to the nearest one of another patient: (A,)."""
        z_others = self.z_norm[self.patients != self.key.hash(patient)]
        return np.array([np.linalg.norm(z_others - z, axis=1).min() for z in z_norm])


@dataclass(frozen=True)
class EditTable:
    """Measures edited cases.

    Attributes:
        direction: the direction of the edits.
        along: ``pattern`` or ``weight``.
        strengths: the strengths of the edits, ascending; one of them is 0.
        watched: other directions, along which cases should not move.
        others: the z_sem of other patients; None: distances to them are not measured.
    """

    direction: Direction
    along: Along
    strengths: Sequence[float]
    watched: Sequence[Direction]
    others: OtherPatients | None = None

    @classmethod
    def read(cls, direction: Path, along: Along, strengths: Sequence[float], watch: Sequence[Path]) -> EditTable:
        """Read the directions.

        Raises:
            ConfigError: a file is not a direction, or two watched directions have the same target.
        """
        watched = [read_direction(file) for file in watch]
        targets = [each.target for each in watched]
        duplicate = next((target for target in targets if targets.count(target) > 1), None)
        if duplicate is not None:
            raise ConfigError(f"watch: two directions are for '{duplicate}', and would share a column; omit one")
        return cls(read_direction(direction), along, strengths, watched)

    def for_model(self, trained: TrainedBundle, embeddings: Path | None) -> EditTable:
        """Check that the directions belong to a model, and add the other patients of its embeddings.

        Raises:
            ConfigError: a direction or the embeddings belong to another model.
            CohortError: the embeddings have no two patients.
        """
        for each in (self.direction, *self.watched):
            each.check_fits(trained.sha256, trained.z_channels, trained.preprocessing_sha256)
        if embeddings is None:
            return self
        check_same_model(embeddings, trained.folder)
        warn_of_other_preprocessing(embeddings, trained)
        return replace(self, others=OtherPatients.read(embeddings, self.direction))

    def moved(self, z_sem: Floats) -> Floats:
        """Return the z_sem (1, D) of a case, moved by each strength: (A, D)."""
        return np.concatenate([self.direction.move(z_sem, strength, self.along) for strength in self.strengths])

    def rows(
        self, case_id: str, patient: str, z_moved: Floats, z_edited: Floats | None, mse: NDArray[np.floating[Any]]
    ) -> pd.DataFrame:
        """Return one row per strength.

        Args:
            case_id: id of the case.
            patient: its patient.
            z_moved: z_sem of the case, moved by each strength: (A, D).
            z_edited: z_sem of the edited images (A, D); None: the encoder cannot look at them.
            mse: mean squared error of the edited images to the plain reconstruction (A,).
        """
        columns: dict[str, Any] = {"id": case_id, "strength": self.strengths, "target": self.direction.predict(z_moved)}
        if z_edited is None:
            return pd.DataFrame({**columns, "mse": mse})
        z_case = z_moved[self.strengths.index(0)]
        z_norm = self.direction.statistics.normalise(z_edited)
        change = z_norm - self.direction.statistics.normalise(z_case)
        orthogonal = change - np.outer(change @ self.direction.weight, self.direction.line(self.along))
        columns |= {"prediction": self.direction.predict(z_edited), "achieved": self._travel(self.direction, z_edited)}
        columns |= {"mse": mse, "identity": np.linalg.norm(orthogonal, axis=1)}
        if self.others is not None:
            columns["nearest_other"] = self.others.nearest(z_norm, patient)
            columns["is_itself"] = np.linalg.norm(change, axis=1) < columns["nearest_other"]
        columns |= {f"drift_{each.target}": self._travel(each, z_edited) for each in self.watched}
        return pd.DataFrame(columns)

    def _travel(self, direction: Direction, z_edited: Floats) -> Floats:
        """How far edited images moved along a direction from the plain reconstruction, in standard deviations."""
        distance = direction.distance(z_edited)
        return (distance - distance[self.strengths.index(0)]) / direction.std


def monotone_share(table: pd.DataFrame, kind: Kind) -> float | None:
    """Return the fraction of cases whose prediction rises; None without predictions, or with one strength only."""
    if "prediction" not in table or table["strength"].nunique() < 2:
        return None
    return float(table.groupby("id", sort=False)["prediction"].apply(_rises, kind=kind).mean())


def achieved_share(table: pd.DataFrame) -> float | None:
    """Return the median of achieved over requested strength; None if it is not measured, or 0 is the only strength."""
    if "achieved" not in table or not table["strength"].any():
        return None
    edits = table[table["strength"] != 0]
    return float((edits["achieved"] / edits["strength"]).median())


def warn_of_small_changes(achieved: float | None, along: Along, direction: Direction) -> None:
    """Log a warning if edited images moved by less than a fifth of what was requested."""
    if achieved is None or achieved >= _LEAST_ACHIEVED:
        return
    reason = "the decoder hardly uses z_sem: see monai-diffae diagnose"
    if along == "weight":
        reason = "the weight may point away from all cases: try along pattern, and see monai-diffae diagnose"
    if direction.may_be_chance:
        reason = (
            f"the direction '{direction.target[:60]}' may be chance (cross-validated {direction.metric}), along which "
            "images need not change"
        )
    logger.warning("the edited images moved by %.1f %% of the requested strength; %s", 100 * achieved, reason)


def _rises(predictions: pd.Series[float], kind: Kind) -> bool:
    """Whether each prediction is above the one before. A probability that rounds to 0 or 1 may stay the same."""
    values = predictions.to_numpy()
    if kind == "continuous":
        return bool((np.diff(values) > 0).all())
    is_saturated = (np.maximum(values[:-1], values[1:]) < 1e-6) | (np.minimum(values[:-1], values[1:]) > 1 - 1e-6)
    return bool(((np.diff(values) > 0) | is_saturated).all())
