"""The latent DDIM of a bundle: loading, description, completion and export."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.config import model_config
from monai_diffae.bundle.config_reading import read_config
from monai_diffae.bundle.folders import complete_bundle, copy_model, export_bundle
from monai_diffae.bundle.layout import LATENT_CONFIG, LATENT_MODEL, MODEL, MODELS, models_folder
from monai_diffae.bundle.loading import build
from monai_diffae.bundle.weights import read_weights
from monai_diffae.data.torch_files import read_torch_file
from monai_diffae.errors import ConfigError, DiffAEError, quoted
from monai_diffae.inferers import LatentInferer
from monai_diffae.latents.statistics import LatentStatistics
from monai_diffae.networks import LatentMLP

if TYPE_CHECKING:
    from monai.bundle import ConfigParser


logger = logging.getLogger(__name__)

_ROOTS = ("latent_network_def", "latent_diffusion", "latent_inferer", "autoencoder_sha256")


@dataclass(frozen=True)
class TrainedLatent:
    """A trained latent DDIM.

    Attributes:
        network: in evaluation mode, with the averaged weights and the statistics of its training set.
        inferer: samples z_sem from the network.
    """

    network: LatentMLP
    inferer: LatentInferer


def load_latent(bundle: str | os.PathLike[str], device: str | torch.device | None = None) -> TrainedLatent:
    """Load the latent DDIM of a trained bundle, as ``models/latent_config.json`` beside its weights describes it.

    Args:
        bundle: the bundle's folder.
        device: where to compute; None: the GPU if there is one.

    Raises:
        ConfigError: there is no latent DDIM, it belongs to another autoencoder, or the statistics of z_sem are unknown.
        ScanError: its weights cannot be read.
    """
    root = Path(bundle)
    weights = models_folder(root) / LATENT_MODEL
    if not weights.is_file():
        raise ConfigError(f"{root.name}: there is no latent model; train it with monai-diffae train-latent")
    parser = _read_latent_config(root)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = build(parser, "latent_network_def", LatentMLP)
    network.load_state_dict(read_weights(weights, network))
    if network.z_std.isnan().any():
        raise ConfigError(
            f"{weights.name}: the mean and std of z_sem are unknown; import the checkpoint again with the official "
            "latent.pkl as latent_statistics"
        )
    network.to(device).eval().requires_grad_(False)
    inferer = build(parser, "latent_inferer", LatentInferer)
    inferer.schedule.to(device)
    return TrainedLatent(network, inferer)


def latent_statistics(bundle: str | os.PathLike[str]) -> LatentStatistics | None:
    """Mean and standard deviation of z_sem over the training of a bundle's latent DDIM; None without a usable one.

    Nothing of the latent DDIM is built or run.

    Example:
        >>> latent_statistics("no_bundle") is None
        True
    """
    root = Path(bundle)
    weights = models_folder(root) / LATENT_MODEL
    if not weights.is_file():
        return None
    try:
        _read_latent_config(root)
        values = read_torch_file(weights, "cannot be read as weights", prefix="z_")
        return LatentStatistics(values["z_mean"], values["z_std"])
    except (DiffAEError, KeyError, TypeError, ValueError) as error:
        logger.debug("the statistics of z_sem are not known: %s", error)
        return None


def _read_latent_config(root: Path) -> ConfigParser:
    """The configuration of the latent DDIM, if it belongs to the autoencoder beside it."""
    config = models_folder(root) / LATENT_CONFIG
    parser = read_config(config)
    lacks = [key for key in _ROOTS if key not in parser]
    if lacks:
        raise ConfigError(
            f"{root.name}: {config.name} lacks {quoted(lacks[0])}; train it with monai-diffae train-latent"
        )
    if parser.get("autoencoder_sha256") != checksum(root):
        raise ConfigError(
            f"{root.name}: the latent model belongs to another autoencoder than models/model.pt; "
            "train it again with monai-diffae train-latent"
        )
    return parser


def set_statistics(network: LatentMLP, statistics: LatentStatistics) -> None:
    """Store the training set's statistics in a network, so that they are saved with its weights."""
    network.set_statistics(torch.from_numpy(statistics.mean), torch.from_numpy(statistics.std))


def latent_config(run_config: dict[str, Any], *, z_channels: int, autoencoder_sha256: str) -> dict[str, Any]:
    """The configuration that is written beside the weights: how to load them, and to which autoencoder they belong."""
    values = {"z_channels": z_channels, "autoencoder_sha256": autoencoder_sha256}
    return model_config({**run_config, **values}, roots=_ROOTS)


def check_output_folder(bundle_root: str | os.PathLike[str], output_dir: str | os.PathLike[str]) -> None:
    """Check that an output folder has no other autoencoder, which :func:`complete_latent_bundle` would replace.

    Example:
        >>> check_output_folder("my_bundle", "a_new_folder")
    """
    root, folder = Path(bundle_root), Path(output_dir)
    if root.resolve() == folder.resolve():
        return
    has_models = all((models_folder(each) / MODEL).is_file() for each in (root, folder))
    if has_models and checksum(root) != checksum(folder):
        raise ConfigError(
            f"output_dir: {folder.resolve().name} holds another trained model than {root.resolve().name}; choose "
            "another output_dir, or set overwrite to replace that model"
        )


def complete_latent_bundle(bundle_root: str | os.PathLike[str], output_dir: str | os.PathLike[str]) -> None:
    """Complete an output folder to a bundle, unless it is the bundle: configurations, docs, licence, autoencoder.

    The output folder of a fast decoder is completed in the same way.
    """
    source, target = Path(bundle_root), Path(output_dir)
    if source.resolve() == target.resolve():
        return
    complete_bundle(source, target)
    copy_model(source, target)


def export_latent_bundle(bundle_root: str | os.PathLike[str], output_dir: str | os.PathLike[str], folder: Path) -> None:
    """Copy the bundle and both trained models to ``folder``, but nothing of the data."""
    export_bundle(Path(bundle_root), Path(bundle_root), folder)
    for file in (LATENT_MODEL, LATENT_CONFIG):
        shutil.copy2(models_folder(output_dir) / file, folder / MODELS / file)
