"""The data of a latent DDIM: a cohort's z_sem and their statistics. ``configs/train_latent.json`` calls these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.provenance import check_same_model, check_same_preprocessing
from monai_diffae.bundle.layout import model_file
from monai_diffae.bundle.model_file import read_description
from monai_diffae.data.embeddings import read_embeddings, split_rows, z_matrix
from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import LatentStatistics

if TYPE_CHECKING:
    import pandas as pd
    import torch


def embedded_cohort(
    bundle: str,
    cohort: str | None,
    out: str,
    *,
    embeddings: str | None = None,
    columns: Mapping[str, str] | None = None,
    workers: int | None = None,
    device: torch.device | str | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Read a cohort's embeddings, or embed the cohort if that is not done yet; several processes share this work.

    Args:
        bundle: the folder of the trained bundle that encodes.
        cohort: the cohort to embed into ``out``; not used if ``embeddings`` is given.
        out: the folder of the table.
        embeddings: a table that was made before with this bundle.
        columns: names that the cohort's table uses for image, id, patient or split.
        workers: processes that read scans ahead.
        device: where to encode.
        overwrite: embed the cohort again.

    Returns:
        One row per case, with its split and z_sem.

    Raises:
        ConfigError: the bundle is not trained, neither a cohort nor a table is given, or the table was made with
            another model or preprocessing.
        CohortError: no usable case or table.
    """
    if embeddings is not None:
        table = read_embeddings(embeddings)
        check_same_model(embeddings, bundle)
        check_same_preprocessing(embeddings, read_description(model_file(bundle)))
        return table
    if cohort is None:
        raise ConfigError(
            "cohort: is required unless there are embeddings; give one of them (in a bundle run, dataset_dir or "
            "embeddings)"
        )
    device = None if device is None else str(device)
    made = embed(bundle, cohort, out, columns=columns or {}, workers=workers, device=device, overwrite=overwrite)
    if dist.is_available() and dist.is_initialized():
        dist.barrier()  # the first process writes the table
    return read_embeddings(Path(made))


def training_statistics(table: pd.DataFrame) -> LatentStatistics:
    """Mean and standard deviation of the training cases' z_sem.

    Raises:
        CohortError: there are no training cases.
    """
    return LatentStatistics.of(z_matrix(split_rows(table, "train")))
