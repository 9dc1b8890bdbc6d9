"""Strategies of active learning: which image an annotator should label next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy
from numpy.typing import NDArray

from monai_diffae.apps.embedding.index import EmbeddingIndex
from monai_diffae.label.answers import ConflictError
from monai_diffae.label.app_folder import AppFolder
from monai_diffae.label.label_targets import AUTO, CLASS, label_targets
from monai_diffae.label.served_model import ServedModel
from monai_diffae.label.task import check_keys
from monai_diffae.latents.outliers import ReferenceCases

_NEIGHBORS = 5
_FEWEST_LABELLED = 4


@dataclass(frozen=True)
class Pool:
    """The encoded images, in the order of their ids.

    Attributes:
        ids: (N,) ids.
        z_sem: (N, D), not normalised.
        labelled: rows of images with a final label.
        proposed: rows of images that were proposed and have no final label yet.
        candidates: rows from which the next image is chosen: neither labelled nor proposed; if there is none, the one
            that was proposed longest ago.
    """

    ids: list[str]
    z_sem: NDArray[np.float32]
    labelled: list[int]
    proposed: list[int]
    candidates: list[int]
def strategies(served, folder): return {}
