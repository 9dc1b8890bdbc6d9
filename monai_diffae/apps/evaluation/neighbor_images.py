"""The images behind a table of embeddings: a picture of neighbours, and what decoding the cases gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.apps.session import BundleCases, OpenedCohort
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.failures import Failure
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import CohortError
from monai_diffae.pictures.cells import draw_cells

FAILURES_NAME = "neighbors_failures.csv"


@dataclass
class CaseImages:
    """The cohorts that the cases asked about and the table's cases are in; the same one unless said otherwise.

    Attributes:
        of_asked: the bundle, and the cohort of the cases asked about.
        of_table: the bundle, and the table's cohort.
        folder: for what is read.
        workers: processes that read.
        failures: by id, the cases that could not be read.
    """

    of_asked: OpenedCohort
    of_table: OpenedCohort
    folder: Path
    workers: int = 0
    failures: dict[str, Failure] = field(default_factory=dict)

    def gaps(self, opened: OpenedCohort, ids: Sequence[str], seed: int) -> pd.DataFrame:
        """What decoding gets wrong: the mean squared error in the model's range, a row a case by its id.

        ``mse_z_sem`` is from z_sem alone, with one noise for all cases, a function of the seed; ``mse_both`` with the
        case's own x_T.
        """
        read = self._read(opened, ids)
        noise = image_noise(opened.trained.x_T_shape, seed, [0]).to(opened.trained.device)
        errors = {}
        for coded in opened.coded(read, f"decoding {len(read.cases)} cases"):
            images = opened.decode(coded.z_sem, torch.cat([noise.to(coded.x_T), coded.x_T]))
            errors[coded.case.id] = (images - coded.image).square().flatten(1).mean(dim=1).tolist()
        return pd.DataFrame.from_dict(errors, orient="index", columns=["mse_z_sem", "mse_both"])

    def draw(self, path: Path, ids: Sequence[str], near: NDArray[np.str_], distances: NDArray[np.float64]) -> None:
        """A row a case: itself, then its neighbours with their distances. No ids: a picture is shown around.

        Args:
            path: the PNG.
            ids: the N cases.
            near: their neighbours' ids, (N, k).
            distances: (N, k).
        """
        asked, others = self._images(self.of_asked, ids), self._images(self.of_table, near.ravel().tolist())
        cells = [(asked.get(name), f"case {i}") for i, name in enumerate(ids, start=1)]
        rows = [
            [cell, *((others.get(name), f"{distance:.3g}") for name, distance in zip(*found, strict=True))]
            for cell, *found in zip(cells, near, distances, strict=True)
        ]
        model_range = self.of_table.trained.model_range
        write_atomic(path, lambda temporary: draw_cells(rows, temporary, model_range))

    def _images(self, opened: OpenedCohort, ids: Sequence[str]) -> dict[str, Tensor]:
        read = self._read(opened, ids)
        return {case.id: read.dataset[i]["image"] for i, case in enumerate(read.cases)}

    def _read(self, opened: OpenedCohort, ids: Sequence[str]) -> BundleCases:
        broken = {failure.case_id: failure for failure in opened.cohort.failures}  # even their headers cannot be read
        self.failures.update({name: broken[name] for name in ids if name in broken})
        left = [name for name in ids if name not in broken]
        if not left:
            first = broken[ids[0]]
            raise CohortError(f"none of {len(set(ids))} images can be read, the first '{ids[0]}': {first.reason}")
        read = opened.read(opened.choose(left), self.folder, self.workers, FAILURES_NAME)
        self.failures.update({failure.case_id: failure for failure in opened.failures})
        return read
