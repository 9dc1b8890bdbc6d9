"""The latent DDIM of a bundle: trained on the z_sem of a cohort, it makes new z_sem."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from monai_diffae.apps.bundles import build, complete_bundle, copy_model, export_bundle, read_weights
from monai_diffae.apps.embed import check_made_with, embed
from monai_diffae.apps.reading import checksum
from monai_diffae.apps.train import train
from monai_diffae.data.embeddings import read_embeddings, rows_of_split, z_of
from monai_diffae.engines.run_config import model_config
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import LatentInferer
from monai_diffae.latents.statistics import LatentStatistics
from monai_diffae.networks import LatentMLP

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

_WEIGHTS, _CONFIG = "latent_model.pt", "latent_config.json"
_ROOTS = ("latent_network_def", "latent_diffusion", "latent_inferer", "autoencoder_sha256")


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


@dataclass(frozen=True)
class TrainedLatent:
    """A trained latent DDIM.

    Attributes:
        network: in evaluation mode, with the averaged weights and the statistics of its training set.
        inferer: samples from it.
    """

    network: LatentMLP
    inferer: LatentInferer


def load_latent(bundle: str | os.PathLike[str], device: str | torch.device | None = None) -> TrainedLatent:
    """Load the latent DDIM of a trained bundle.

    It is what ``models/latent_config.json`` says, which is written beside the weights.

    Args:
        bundle: the bundle's folder.
        device: where to; the GPU if there is one when None.

    Raises:
        ConfigError: there is none, it belongs to another autoencoder, or the statistics of z_sem are not known.
        ScanError: its weights cannot be read.
    """
    root = Path(bundle)
    weights = root / "models" / _WEIGHTS
    if not weights.is_file():
        raise ConfigError(f"{root.name}: there is no latent model; train it with monai-diffae train-latent")
    parser = _read_latent_config(root)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = build(parser, "latent_network_def", LatentMLP)
    network.load_state_dict(read_weights(weights, network, may_be_unknown=("z_mean", "z_std")))
    if network.z_std.isnan().any():
        raise ConfigError(
            f"{weights.name}: the mean and std of z_sem are not known; import the checkpoint again with "
            "--latent-statistics latent.pkl"
        )
    network.to(device).eval().requires_grad_(False)
    inferer = build(parser, "latent_inferer", LatentInferer)
    inferer.schedule.to(device)
    return TrainedLatent(network, inferer)


def _read_latent_config(root: Path) -> ConfigParser:
    """What describes the latent model, checked to belong to the autoencoder beside it."""
    from monai.bundle import ConfigParser

    config = root / "models" / _CONFIG
    parser = ConfigParser()
    try:
        parser.read_config(str(config))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{root.name}: {config.name} cannot be read; copy the bundle again") from error
    lacks = [key for key in _ROOTS if key not in parser]
    if lacks:
        raise ConfigError(f"{root.name}: {config.name} lacks {lacks[0]!r}; train it with monai-diffae train-latent")
    if parser.get("autoencoder_sha256") != checksum(root):
        raise ConfigError(
            f"{root.name}: the latent model belongs to another autoencoder than models/model.pt; "
            "train it anew with monai-diffae train-latent"
        )
    return parser


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


def set_statistics(network: LatentMLP, statistics: LatentStatistics) -> None:
    """Put the training set's statistics into a network, to be saved with its weights."""
    network.set_statistics(torch.from_numpy(statistics.mean), torch.from_numpy(statistics.std))


def latent_config(run_config: dict[str, Any], *, z_channels: int, autoencoder_sha256: str) -> dict[str, Any]:
    """What is written beside the weights: enough to load them, and which autoencoder they belong to."""
    known = {"z_channels": z_channels, "autoencoder_sha256": autoencoder_sha256}
    return model_config({**run_config, **known}, roots=_ROOTS)


def complete_latent_bundle(bundle_root: str | os.PathLike[str], output_dir: str | os.PathLike[str]) -> None:
    """Make a bundle of an output folder elsewhere: configs, docs, licence and the autoencoder beside the weights."""
    source, target = Path(bundle_root), Path(output_dir)
    if source.resolve() == target.resolve():
        return
    complete_bundle(source, target)
    copy_model(source / "models", target / "models")


def export_latent_bundle(bundle_root: str | os.PathLike[str], output_dir: str | os.PathLike[str], folder: Path) -> None:
    """Fill ``folder`` with the bundle and both trained models, nothing of the data."""
    export_bundle(Path(bundle_root), Path(bundle_root), folder)
    for file in (_WEIGHTS, _CONFIG):
        shutil.copy2(Path(output_dir) / "models" / file, folder / "models" / file)
