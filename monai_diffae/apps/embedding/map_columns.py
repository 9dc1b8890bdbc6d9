"""Columns with which other tools draw a table of embeddings as a map: places and thumbnails."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from monai_diffae.bundle import TrainedBundle
from monai_diffae.data.cases import Case
from monai_diffae.data.embeddings import MAP_COLUMNS, split_rows, z_matrix
from monai_diffae.data.streamed import read_stream
from monai_diffae.latents import LatentStatistics, principal_components
from monai_diffae.pictures import thumbnail


def with_map_columns(
    table: pd.DataFrame, cases: Sequence[Case], trained: TrainedBundle, workers: int, *, common_scale: bool
) -> pd.DataFrame:
    """Add ``x``, ``y`` and ``thumbnail`` to a table with one row per image.

    ``x`` and ``y`` are the first two principal components of the training cases' normalised z_sem. ``thumbnail`` is a
    PNG of at most 64 x 64; of a volume, it shows the axial middle plane. Labels with these names get the prefix
    ``label_``.

    Args:
        table: the embeddings.
        cases: the cases of the cohort, among them those of the table.
        trained: preprocesses the scans, which are read once more.
        workers: processes that read ahead.
        common_scale: whether the codes are principal components, whose relative sizes are kept.

    Raises:
        ConfigError: there are fewer than three training cases.
        CohortError: there are no training cases.
        ScanError: a scan can no longer be read.
    """
    z_train = z_matrix(split_rows(table, "train"))
    components = principal_components(z_train, LatentStatistics.of(z_train, common_scale=common_scale), 2)
    x, y = components.coordinates(z_matrix(table)).T
    by_id = {case.id: case for case in cases}
    items = [by_id[name].item() for name in table["id"]]
    pictures = []
    for image in read_stream(items, trained.preprocessing, ("image",), workers):
        if isinstance(image, Exception):
            raise image
        pictures.append(thumbnail(torch.from_numpy(image["image"]), trained.model_range))
    labels = table.rename(columns={name: f"label_{name}" for name in MAP_COLUMNS})
    return labels.assign(x=x, y=y, thumbnail=pictures)
