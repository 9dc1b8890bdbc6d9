"""The cases of a study: a table of embeddings with labels, patients and principal components."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae import latents
from monai_diffae.apps.settings import Split
from monai_diffae.errors import CohortError
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Features

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from monai_diffae.data import embeddings as tables

if TYPE_CHECKING:
    from monai_diffae.latents.statistics import Floats
logger = logging.getLogger(__name__)

_SHARE, _CONSTANT = 0.95, 1e-6


@Parameter(name="*", group=Group("Cases", sort_key=2))
@dataclass(frozen=True)
class StudyChoice:
    """Which principal components of which cases are studied."""

    components: Annotated[int, Ge(1)] | None = None
    """Number of components; by default as many as have 95 % of the variance."""
    split: Split | None = None
    """Use only the cases of this split; by default all."""


def read_cases(path: Path) -> pd.DataFrame:
    """The rows of a table of embeddings, with a unique id each."""
    table = tables.read_embeddings(path)
    tables.case_ids(table, path.name)
    return table


def read_repeated(path: Path, **columns: Sequence[str]) -> pd.DataFrame:
    """The rows of a table that knows its patients, by id; the label columns of these options must be there."""
    table = read_cases(path)
    if "patient" not in table:
        raise CohortError(f"{path.name}: has no column patient, so repeated scans are unknown; embed with patients")
    tables.check_labels(table, columns)
    return table.sort_values("id", kind="stable").reset_index(drop=True)


def training_components(rows: pd.DataFrame, features: Features = "z") -> latents.PrincipalComponents:
    """All principal components of the normalised features of the training cases, or of all without a split."""
    codes = tables.matrix(tables.training_rows(rows), features)  # in an order that decides the last bits
    if len(codes) < 2:
        raise CohortError("the embeddings have fewer than two training cases, which scale the features; embed more")
    statistics = latents.LatentStatistics.of(codes, common_scale=tables.has_common_scale(rows, features))
    return latents.principal_components(codes, statistics)


@dataclass(frozen=True, eq=False)
class StudyCases:
    """Rows of a table of embeddings, one per case, and the principal components of its training cases."""

    name: str
    rows: pd.DataFrame
    axes: latents.PrincipalComponents

    @classmethod
    def open(cls, embeddings: Path, choice: StudyChoice) -> StudyCases:
        """Read a table."""
        table = read_cases(embeddings)
        axes = training_components(table)
        varying = int((axes.stds > _CONSTANT * axes.stds[0]).sum())
        number = choice.components or int(np.searchsorted(np.cumsum(axes.explained), _SHARE)) + 1
        if number > varying:
            logger.warning("%s: only %d components vary, and the others are omitted", embeddings.name, varying)
        kept = slice(min(number, varying))
        axes = replace(axes, directions=axes.directions[kept], stds=axes.stds[kept], explained=axes.explained[kept])
        rows = table if choice.split is None else tables.split_rows(table, choice.split)
        return cls(embeddings.name, rows.reset_index(drop=True), axes)

    @property
    def scores(self) -> Floats:
        """The components of all cases ``[N, K]``, in standard deviations of the training cases."""
        return self.axes.coordinates(tables.z_matrix(self.rows)) / self.axes.stds

    @property
    def patients(self) -> npt.NDArray[np.str_]:
        """The patient of each case; the case itself where none is given."""
        return tables.patients_of(self.rows)
