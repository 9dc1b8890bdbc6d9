"""The latent DDIM of a bundle: trained on the z_sem of a cohort, it makes new z_sem."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.provenance import check_made_with
from monai_diffae.apps.training.train import train
from monai_diffae.bundle.checksums import checksum
from monai_diffae.data.embeddings import read_embeddings, rows_of_split, z_of
from monai_diffae.errors import ConfigError
from monai_diffae.latents.statistics import LatentStatistics

if TYPE_CHECKING:
    pass


def train_latent(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str] | None = None,
    *,
    embeddings: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    overlays: Sequence[str | os.PathLike[str]] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Train the latent DDIM of a trained bundle with ``configs/train_latent.json``; an interrupted training goes on.

    The cohort is embedded first, into ``embeddings/`` of the output folder, unless that is done. ``models/`` there gets
    ``latent_model.pt`` and ``latent_config.json``, ``latent/`` the curves.

    Args:
        bundle: a trained bundle's folder.
        cohort: the data, ``dataset_dir`` in the config.
        embeddings: a table that was embedded with this bundle before, instead of a cohort.
        out: where the results go, with a copy of the autoencoder; into the bundle when None.
        overlays: further config files, laid over ``train_latent.json`` in this order.
        overrides: config ids and values, such as ``{"latent_network_def#num_layers": 5}``.

    Returns:
        The folder with the bundle.

    Raises:
        ConfigError: no trained bundle, no data, embeddings of another bundle, or an unknown key.
        CohortError: no usable set of cases.

    Example:
        >>> train_latent("no_such_bundle", "cohort.csv")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_such_bundle: there is no models/model.pt; train the bundle first
    """
    checksum(bundle)
    values = dict(overrides or {}) | ({} if embeddings is None else {"embeddings": str(embeddings)})
    return train(bundle, cohort, out, config="train_latent", overlays=overlays, overrides=values)


# -- what configs/train_latent.json calls ----------------------------------------------------------------------------


def embedded_cohort(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    embeddings: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    workers: int = 0,
    device: str | torch.device | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """The table of a cohort's z_sem, made with this bundle: a ready one, or else embedded into ``out``, once.

    Args:
        bundle: the trained bundle's folder.
        cohort: what is embedded, if ``embeddings`` is None; so it is with the arguments that follow. One is needed.
        out: the folder of the table.
        embeddings: a ready table.
        columns: what the cohort's table calls our words.
        workers: processes that read and preprocess.
        device: where to encode.
        overwrite: embed anew.

    Raises:
        ConfigError: no trained bundle, neither cohort nor table, or a table that another model made.
        CohortError: no usable cohort or table.
    """
    if embeddings is None:
        if cohort is None:
            raise ConfigError(
                "cohort: neither it nor embeddings are given; say --cohort or --embeddings (in a bundle run "
                "--dataset_dir or --embeddings)"
            )
        made = embed(bundle, cohort, out, columns=columns, workers=workers, device=device, overwrite=overwrite)
        return read_embeddings(made.path)
    path = Path(embeddings)
    table = read_embeddings(path)
    check_made_with(path, bundle)
    return table


def training_statistics(table: pd.DataFrame) -> LatentStatistics:
    """Mean and standard deviation of the training cases' z_sem.

    Raises:
        CohortError: there are no training cases.
    """
    return LatentStatistics.of(z_of(rows_of_split(table, "train")))
