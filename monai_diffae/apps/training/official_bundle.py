"""A bundle made from weights of the official Diff-AE code (phizaz/diffae)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from monai_diffae import __version__
from monai_diffae.bundle import layout
from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.config import check_image_size, model_config
from monai_diffae.bundle.described_model import describe_model
from monai_diffae.bundle.folders import check_new_folder, init_bundle, removed_on_failure, shipped_bundle
from monai_diffae.data.atomic import write_json
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.data.tensor_files import write_tensors
from monai_diffae.errors import ConfigError
from monai_diffae.networks import DiffusionAutoencoder, LatentMLP
from monai_diffae.official import load_official, load_official_latent
from monai_diffae.official.checkpoint_files import read_weights
from monai_diffae.official.latent import select_latent
from monai_diffae.official.weights import select_model

logger = logging.getLogger(__name__)

# The official code's diffusions, and its 8-bit images in [-1, 1].
_OFFICIAL: dict[str, Any] = {
    "intensity": "window",
    "window_hu": [0, 255],
    "model_range": [-1.0, 1.0],
    "diffusion": {
        "_target_": "monai_diffae.diffusion.DiffusionSchedule",
        "num_train_timesteps": 1000,
        "schedule": "linear_beta",
        "prediction": "eps",
        "timestep_sampling": "uniform",
        "loss_weighting": "none",
        "clip_range": "@model_range",
    },
}
_LATENT_DIFFUSION: dict[str, Any] = {
    "_target_": "monai_diffae.diffusion.DiffusionSchedule",
    "num_train_timesteps": 1000,
    "schedule": "linear_beta",
    "beta_start": 0.008,
    "beta_end": 0.008,
    "prediction": "eps",
    "timestep_sampling": "uniform",
    "loss_weighting": "none",
    "clip_range": None,
}
_MAX_SIDE = 4096  # pixels: a mistyped number is an error here, before the machine runs out of memory
_ATTENTION_SIZE = 16  # pixels per side where the official configurations have attention


@dataclass(frozen=True)
class OfficialModel:
    """Properties of a checkpoint of the official code that its weights do not show.

    Attributes:
        image_size: pixels per side; None: that of the checkpoint's ``x_T``, or else the size at which the network's
            attention sees 16 x 16.
        latent_statistics: the official ``latent.pkl``; None: the statistics of z_sem are in the checkpoint.
        encoder_num_res_blocks: residual blocks per level of the encoder; None: the number that fits the weights.
        num_heads: attention heads, which leave no trace in the weights.
    """

    image_size: int | None = None
    latent_statistics: Path | None = None
    encoder_num_res_blocks: int | None = None
    num_heads: int = 1


def make_official_bundle(checkpoint: Path, out: Path, bundle: str, model: OfficialModel) -> None:
    """Fill a new folder with a trained bundle.

    Args:
        checkpoint: the official checkpoint.
        out: the new folder.
        bundle: the shipped bundle whose configurations are used.
        model: properties that the weights do not show.

    Raises:
        ConfigError: the checkpoint does not exist or is of another network, its image size is unknown or cannot be
            used, or ``out`` is not empty.
        UnsafeInputError: a file is damaged, or reading it could run code.
        MachineError: the folder cannot be written; nothing of it remains.
    """
    check_new_folder(out)
    weights = read_weights(checkpoint)  # memory-mapped, as in each of the functions below that read the file
    network = load_official(checkpoint, encoder_num_res_blocks=model.encoder_num_res_blocks, num_heads=model.num_heads)
    side = model.image_size
    size = _image_size(checkpoint, weights, network) if side is None else [side] * network.spatial_dims
    _check_size(network, size)
    latent = _latent(checkpoint, select_latent(weights) is not None, model.latent_statistics, network.z_channels)
    config = _config(bundle, network, size)
    provenance = {
        "source": "official phizaz/diffae checkpoint",
        "file_sha256": file_checksum(checkpoint),
        "weights": select_model(weights)[0],
        "monai_diffae": __version__,
    }
    with removed_on_failure(out):
        models = init_bundle(out, bundle) / layout.MODELS
        write_json(models / layout.CONFIG, config)
        describe_model(out)
        write_json(models / "provenance.json", provenance)
        if latent is not None:
            write_tensors(latent.state_dict(), models / layout.LATENT_MODEL)
        write_tensors(network.state_dict(), models / layout.MODEL)  # from now on the folder is a trained bundle
        if latent is not None:
            write_json(models / layout.LATENT_CONFIG, _latent_config(latent, checksum(out)))
    logger.info(
        "%s: a Diff-AE of %.1f M parameters for images of %s with %d channels, z_sem of %d",
        out.name, sum(p.numel() for p in network.parameters()) / 1e6, " x ".join(map(str, size)),
        network.in_channels, network.z_channels,
    )  # fmt: skip


def _image_size(checkpoint: Path, weights: Mapping[str, Tensor], network: DiffusionAutoencoder) -> list[int]:
    """The image size for which the network was trained, derived from the weights.

    Raises:
        ConfigError: the weights do not determine it.
    """
    x_T = weights.get("x_T")
    if x_T is not None and x_T.ndim == network.spatial_dims + 2:
        size = list(x_T.shape[2:])
        logger.info("image size %s, which is that of x_T in the checkpoint", " x ".join(map(str, size)))
        return size
    levels = _arguments(network, "unet")["attention_levels"]
    if len(levels) != 1:
        raise ConfigError(
            f"image_size: is unknown, as {checkpoint.name} has no x_T, and attention at {len(levels)} levels; "
            "give a value"
        )
    side = _ATTENTION_SIZE * 2 ** levels[0]
    logger.info("image size %d, at which the network's attention sees 16 x 16; image_size changes it", side)
    return [side] * network.spatial_dims


def _check_size(network: DiffusionAutoencoder, size: list[int]) -> None:
    if max(size) > _MAX_SIDE:
        raise ConfigError(
            f"image_size: {max(size)} is above the limit of {_MAX_SIDE} pixels per side; use a smaller one"
        )
    check_image_size(network, size)


def _latent(checkpoint: Path, has_latent: bool, statistics: Path | None, z_channels: int) -> LatentMLP | None:
    """The checkpoint's latent DDIM; None if there is none.

    Raises:
        ConfigError: it does not fit the autoencoder, or there are statistics without a latent DDIM.
    """
    if not has_latent:
        if statistics is not None:
            raise ConfigError(
                f"{checkpoint.name}: has no latent DDIM to which statistics could belong; omit latent_statistics"
            )
        logger.info("the checkpoint has no latent DDIM: it can encode and decode images, but not generate new ones")
        return None
    latent = load_official_latent(checkpoint, statistics)
    if latent.z_channels != z_channels:
        raise ConfigError(
            f"{checkpoint.name}: the latent DDIM is for a z_sem of {latent.z_channels}, but the encoder's has "
            f"{z_channels}; choose a checkpoint in which both belong together"
        )
    if latent.z_std.isnan().any():
        logger.warning("the mean and std of z_sem are not in the checkpoint; latent_statistics adds them")
    return latent


def _config(bundle: str, network: DiffusionAutoencoder, size: list[int]) -> dict[str, Any]:
    """The configuration that a training would have written beside the weights.

    Raises:
        ConfigError: the bundle is for images of other dimensions.
    """
    shipped_config: dict[str, Any] = json.loads((shipped_bundle(bundle) / "configs" / "train.json").read_text())
    if shipped_config["spatial_dims"] != network.spatial_dims:
        raise ConfigError(
            f"bundle: {bundle} is for {shipped_config['spatial_dims']}D images, but the weights are not; choose another"
        )
    config = shipped_config | _OFFICIAL
    config["image_size"] = size
    shared = {key: value for key, value in _arguments(network, "unet").items() if key in config}
    config |= shared
    for name in ("unet", "encoder"):
        # A value that the shipped config shares between the networks stays a key of its own.
        config["network_def"][name] = {
            "_target_": config["network_def"][name]["_target_"],
            **{
                key: f"@{key}" if key in shared and shared[key] == value else value
                for key, value in _arguments(network, name).items()
            },
        }
    return model_config(config)


def _arguments(network: DiffusionAutoencoder, name: str) -> dict[str, Any]:
    """The arguments with which the encoder or the UNet was built."""
    arguments: dict[str, Any] = getattr(network, name).config
    return arguments


def _latent_config(latent: LatentMLP, autoencoder_sha256: str) -> dict[str, Any]:
    """The configuration that a training of the latent DDIM would have written beside its weights."""
    return {
        "latent_network_def": {"_target_": "monai_diffae.networks.LatentMLP", **latent.config},
        "latent_diffusion": _LATENT_DIFFUSION,
        "latent_inferer": {"_target_": "monai_diffae.inferers.LatentInferer", "schedule": "@latent_diffusion"},
        "autoencoder_sha256": autoencoder_sha256,
    }
