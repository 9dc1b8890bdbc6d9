"""Weights of the official Diff-AE code (phizaz/diffae) to a trained bundle."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffae import __version__
from monai_diffae.bundle.checksums import checksum, file_checksum
from monai_diffae.bundle.config import check_image_size, model_config
from monai_diffae.bundle.folders import check_new_folder, init_bundle, shipped_bundle
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.errors import ConfigError
from monai_diffae.networks import DiffusionAutoencoder, LatentMLP
from monai_diffae.official import load_official, load_official_latent
from monai_diffae.official.checkpoint_files import named_after, read_weights
from monai_diffae.official.latent import select_latent
from monai_diffae.official.weights import select_model

logger = logging.getLogger(__name__)

# the official code's diffusions, and its 8-bit images in [-1, 1]
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
_MAX_SIDE = 4096  # pixels: a mistyped number is told here, not by a machine out of memory
_ATTENTION_SIZE = 16  # where the official configurations attend


def import_official(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    latent_statistics: str | os.PathLike[str] | None = None,
    bundle: str = "diffae_2d",
    encoder_num_res_blocks: int | None = None,
    num_heads: int = 1,
) -> Path:
    """Make a trained bundle of a checkpoint of the official code.

    ``out`` gets the bundle's configs, ``models/model.pt``, ``models/config.json`` as a training writes it, and
    ``models/provenance.json``; of a checkpoint with a latent DDIM also ``models/latent_model.pt``, which
    ``models/latent_config.json`` describes. Images are taken as in the official code:
    0..255 to [-1, 1]. Decoding and inversion are the bundle's;
    :func:`~monai_diffae.apps.synthesis.reconstruct.reconstruct` with
    ``solver="ddim", inversion="ddim", spacing="leading"`` does what the official code does.

    Args:
        checkpoint: a ``.ckpt`` of the official training, or its weights as ``.safetensors``.
        out: a new folder.
        image_size: pixels along a side; None: those of the ``x_T`` that the checkpoint holds, or else the size at
            which the network's attention sees 16 x 16, as in all official configurations.
        latent_statistics: the official ``latent.pkl``; None: the statistics of z_sem in the checkpoint.
        bundle: which shipped bundle to fill.
        encoder_num_res_blocks: where more than one number fits the weights.
        num_heads: attention heads, which leave no trace in the weights.

    Returns:
        ``out``.

    Raises:
        ConfigError: no such file, weights of something else, an image size that is not known or does not fit, or
            ``out`` is not empty or lies below a file.
        UnsafeInputError: a file that is damaged or that cannot be read without running code from it.
        MachineError: the disk is full, or the folder cannot be written; nothing is left of it.

    Example:
        >>> import_official("last.ckpt", "my_model")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: last.ckpt: there is no such file
    """
    checkpoint, out = Path(checkpoint), Path(out)
    check_new_folder(out)
    weights = read_weights(checkpoint)  # stay on the disk, as each time that the file is read
    network = load_official(checkpoint, encoder_num_res_blocks=encoder_num_res_blocks, num_heads=num_heads)
    with named_after(checkpoint):
        size = _image_size(weights, network) if image_size is None else [image_size] * network.spatial_dims
    _check_size(network, size)
    latent = _latent(checkpoint, select_latent(weights) is not None, latent_statistics, network.z_channels)
    config = _config(bundle, network, size)
    provenance = {
        "source": "official phizaz/diffae checkpoint",
        "file_sha256": file_checksum(checkpoint),
        "weights": select_model(weights)[0],
        "monai_diffae": __version__,
    }
    with _removed_on_failure(out):
        models = init_bundle(out, bundle) / "models"
        write_json(models / "config.json", config)
        write_json(models / "provenance.json", provenance)
        if latent is not None:
            _save(latent, models / "latent_model.pt")
        _save(network, models / "model.pt")  # with it the folder is a trained bundle
        if latent is not None:
            write_json(models / "latent_config.json", _latent_config(latent, checksum(out)))
    logger.info(
        "%s: a Diff-AE of %.1f M parameters, images of %s with %d channels, z_sem of %d",
        out.name, sum(p.numel() for p in network.parameters()) / 1e6, " x ".join(map(str, size)),
        network.in_channels, network.z_channels,
    )  # fmt: skip
    return out


def _image_size(weights: Mapping[str, Tensor], network: DiffusionAutoencoder) -> list[int]:
    x_T = weights.get("x_T")
    if x_T is not None and x_T.ndim == network.spatial_dims + 2:
        size = list(x_T.shape[2:])
        logger.info("image size %s, of the x_T in the checkpoint", " x ".join(map(str, size)))
        return size
    levels = _arguments(network, "unet")["attention_levels"]
    if len(levels) != 1:
        raise ConfigError(
            f"the image size is not known: the checkpoint holds no x_T, and attention at {len(levels)} levels; "
            "say --image-size"
        )
    side = _ATTENTION_SIZE * 2 ** levels[0]
    logger.info("image size %d, at which the network's attention sees 16 x 16; --image-size says another", side)
    return [side] * network.spatial_dims


def _check_size(network: DiffusionAutoencoder, size: list[int]) -> None:
    if max(size) > _MAX_SIDE:
        shown = " x ".join(map(str, size))
        raise ConfigError(f"image size {shown}: more than the limit of {_MAX_SIDE} pixels along a side; say a smaller")
    check_image_size(network, size)


def _latent(
    checkpoint: Path, has_latent: bool, statistics: str | os.PathLike[str] | None, z_channels: int
) -> LatentMLP | None:
    if not has_latent:
        if statistics is not None:
            raise ConfigError(
                f"{checkpoint.name}: holds no latent DDIM that statistics could belong to; leave them out"
            )
        logger.info("the checkpoint holds no latent DDIM: images can be encoded and decoded, not made from nothing")
        return None
    latent = load_official_latent(checkpoint, None if statistics is None else Path(statistics))
    if latent.z_channels != z_channels:
        raise ConfigError(
            f"{checkpoint.name}: the latent DDIM is for a z_sem of {latent.z_channels}, the encoder gives "
            f"{z_channels}; name a checkpoint of one training"
        )
    if latent.z_std.isnan().any():
        logger.warning("the mean and std of z_sem are not in the checkpoint: --latent-statistics latent.pkl adds them")
    return latent


def _config(bundle: str, network: DiffusionAutoencoder, size: list[int]) -> dict[str, Any]:
    """What a training would have written beside the weights."""
    shipped_config: dict[str, Any] = json.loads((shipped_bundle(bundle) / "configs" / "train.json").read_text())
    if shipped_config["spatial_dims"] != network.spatial_dims:
        raise ConfigError(f"bundle: {bundle} is for {shipped_config['spatial_dims']}D, the weights are not")
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
    """What the encoder or the UNet was built with."""
    arguments: dict[str, Any] = getattr(network, name).config
    return arguments


def _latent_config(latent: LatentMLP, autoencoder_sha256: str) -> dict[str, Any]:
    """What a training of the latent DDIM would have written beside its weights."""
    return {
        "latent_network_def": {"_target_": "monai_diffae.networks.LatentMLP", **latent.config},
        "latent_diffusion": _LATENT_DIFFUSION,
        "latent_inferer": {"_target_": "monai_diffae.inferers.LatentInferer", "schedule": "@latent_diffusion"},
        "autoencoder_sha256": autoencoder_sha256,
    }


def _save(network: nn.Module, path: Path) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            try:
                torch.save(network.state_dict(), stream)
            except RuntimeError as error:  # torch hides the disk's OSError behind its own
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    write_atomic(path, write)


@contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    """Fill a new folder; if that fails, the folder is absent or empty again, as it was, and its parents as well."""
    check_new_folder(folder)
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the failure is what the user has to know
            for content in folder.iterdir():
                shutil.rmtree(content) if content.is_dir() else content.unlink()
        for path in made:
            with suppress(OSError):  # as when somebody else has put something there
                path.rmdir()
        raise
