"""The work of ``neighbors``: tables of the nearest cases and of outlier scores."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.apps.evaluation.outliers import (
    TrainingCases,
    patients_of,
    splits_of,
    unusual_shares,
    with_reconstruction_errors,
)
from monai_diffae.apps.provenance import model_checksum, preprocessing_differences
from monai_diffae.apps.results import log_to_open_run
from monai_diffae.apps.settings import Choice
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.embeddings import label_columns, patient_key_name, read_embeddings, split_rows, z_columns
from monai_diffae.data.patient_keys import KEY_FILE
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents.neighbors import nearest_neighbors, p_values

if TYPE_CHECKING:
    from monai_diffae.apps.evaluation.neighbor_images import CaseImages

logger = logging.getLogger(__name__)

_SCORES = {"distance": False, "whitened": True}


@dataclass(frozen=True)
class NeighborSearch:
    """The selected cases, and the table that they are looked up in.

    Attributes:
        cases: one row per selected case.
        table: the table of embeddings.
        are_queries: whether the cases are of another table.
        k: number of neighbors.
        same_patient: whether neighbors may be of the same patient.
    """

    cases: pd.DataFrame
    table: pd.DataFrame
    are_queries: bool
    k: int
    same_patient: bool

    @classmethod
    def open(cls, embeddings: Path, queries: Path | None, choice: Choice, k: int, same_patient: bool) -> NeighborSearch:
        """Read the tables and select the cases.

        Raises:
            CohortError: a file is not a table of embeddings, or there is no such case.
            ConfigError: the tables were made with different models or poolings.
        """
        table = _read(embeddings)
        rows = table if queries is None else _read(queries)
        if queries is not None:
            is_same_kind = len(z_columns(rows)) == len(z_columns(table)) and all(
                (pooled in rows) == (pooled in table) for pooled in ("slices", "patches")
            )
            if not is_same_kind or model_checksum(queries) != model_checksum(embeddings):
                raise ConfigError(
                    f"queries: {queries.name} was made with another model or pool than {embeddings.name}; embed both "
                    "in the same way"
                )
            recorded = table.attrs.get("monai_diffae", {}).get("preprocessing")
            differ = preprocessing_differences(rows, recorded) if recorded is not None else []
            if differ:
                logger.warning(
                    "%s and %s were made with different preprocessing (%s), so distances and scores say little; embed "
                    "both in the same way", queries.name, embeddings.name, ", ".join(differ),
                )  # fmt: skip
            has_patients = "patient" in rows  # synthetic images have none
            if has_patients and not same_patient and patient_key_name(rows) != patient_key_name(table):
                logger.warning(
                    "%s and %s hide their patients with different keys, so neighbors may be of the same patient; copy "
                    "%s from the folder of one to that of the other, and embed that one again with overwrite",
                    queries.name, embeddings.name, KEY_FILE,
                )  # fmt: skip
        return cls(_selected(rows, choice), table, queries is not None, k, same_patient)

    @property
    def splits(self) -> NDArray[Any]:
        """The split of each selected case; ``queries`` for those of another table."""
        return np.full(len(self.cases), "queries") if self.are_queries else splits_of(self.cases)

    def run(self, training: TrainingCases, out: Path, images: CaseImages | None) -> dict[str, Any]:
        """Write the tables and the picture.

        Returns:
            The shares of unusual cases, and the number of cases and of unreadable images.
        """
        neighbors = self.neighbors(training)
        outliers, shares = self.outliers(training)
        picture = out / "neighbors.png"
        if images is not None:
            images.draw(picture, neighbors, self.cases, self.table)
            if images.settings.reconstruction_error:
                outliers = self._with_reconstruction_errors(outliers, training, images)
                for name in ("mse_z_sem", "mse_x_T"):
                    shares[name] = unusual_shares(self.splits, outliers[f"p_{name}"])
            images.write_failures()
        for name, table in {"neighbors.csv": neighbors, "outliers.csv": outliers}.items():
            write_atomic(out / name, functools.partial(table.to_csv, index=False, lineterminator="\n"))
        figures = {f"{score}_{name}": share for score, each in shares.items() for name, share in each.items()}
        log_to_open_run(figures, [] if images is None else [picture], "neighbors")
        num_failed = 0 if images is None else len(images.failures)
        return {"unusual_shares": shares, "num_cases": len(outliers), "num_failed": num_failed}

    def neighbors(self, training: TrainingCases) -> pd.DataFrame:
        """The table of neighbors: one row per case and neighbor."""
        cases, table, k = self.cases, self.table, self.k
        groups = [each["id"].to_numpy(str) if self.same_patient else patients_of(each) for each in (cases, table)]
        nearest = nearest_neighbors(training.normalised(cases), training.normalised(table), k, *groups)
        rows = cases.loc[cases.index.repeat(k)].reset_index(drop=True)
        neighbor_rows = table.iloc[nearest.indices.ravel()].reset_index(drop=True)
        result = pd.DataFrame({"id": rows["id"], "rank": np.tile(np.arange(1, k + 1), len(cases))})
        result = result.assign(neighbor=neighbor_rows["id"], distance=nearest.distances.ravel())
        for name in label_columns(table):
            if name in rows:
                result[f"label_{name}" if name in result else name] = rows[name]
            result[f"neighbor_{name}"] = neighbor_rows[name]
        return result

    def outliers(self, training: TrainingCases) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
        """The table of outlier scores by distance, and the share of unusual cases in each split of the whole table."""
        table, cases, k = self.table, self.cases, self.k
        is_train = table.index.isin(training.rows.index)
        outliers, shares = pd.DataFrame({"id": cases["id"].to_numpy(), "split": self.splits}), {}
        for name, whitened in _SCORES.items():
            table_scores = np.empty(len(table))
            table_scores[is_train] = training.own_distances(k, whitened)
            if not is_train.all():
                table_scores[~is_train] = training.distances(table[~is_train], k, whitened)
            table_p = p_values(table_scores, table_scores[is_train], is_train)
            shares[name] = unusual_shares(splits_of(table), table_p)
            if self.are_queries:
                scores = training.distances(cases, k, whitened)
                p = p_values(scores, table_scores[is_train], np.zeros(len(cases), bool))
                shares[name] |= unusual_shares(self.splits, p)
            else:
                scores, p = table_scores[cases.index], table_p[cases.index]
            outliers = outliers.assign(**{name: scores, f"p_{name}": p})
        return outliers, shares

    def _with_reconstruction_errors(
        self, outliers: pd.DataFrame, training: TrainingCases, images: CaseImages
    ) -> pd.DataFrame:
        settings = images.settings
        reference, ids = training.sample(settings.num_reference, settings.seed), outliers["id"].tolist()
        if self.are_queries:
            errors = images.reconstruction_errors(images.query_session, ids)
            reference_errors = images.reconstruction_errors(images.table_session, reference)
            return with_reconstruction_errors(outliers, errors, reference_errors, are_queries=True)
        errors = images.reconstruction_errors(images.table_session, [*reference, *ids])
        reference_errors = errors.reindex(reference).dropna()
        return with_reconstruction_errors(outliers, errors, reference_errors, are_queries=False)


def _read(embeddings: Path) -> pd.DataFrame:
    table = read_embeddings(embeddings)
    if "id" not in table or table["id"].duplicated().any():
        raise CohortError(f"{embeddings.name}: has no column id with a unique name for each case; embed again")
    return table.assign(id=table["id"].astype(str))


def _selected(rows: pd.DataFrame, choice: Choice) -> pd.DataFrame:
    """The rows with the given ids in their order, else the first ``limit`` of a split."""
    if choice.cases:
        ids: Sequence[str] = list(dict.fromkeys(choice.cases))
        missing = [name for name in ids if name not in set(rows["id"])]
        if missing:
            raise CohortError(f"cases: the table has no case '{missing[0]}'; check the ids in its column id")
        selected = rows.loc[[rows.index[rows["id"] == name][0] for name in ids]]
        choice.check_cases(dict(zip(ids, splits_of(selected), strict=True)))
        return selected
    return (rows if choice.split is None else split_rows(rows, choice.split))[: choice.limit]
