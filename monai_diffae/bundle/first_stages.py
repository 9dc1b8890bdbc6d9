"""The first stage of a diffusion autoencoder, loaded from its own bundle or from that of the model on its latents."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_diffae.bundle import config_values
from monai_diffae.bundle.config_reading import read_config
from monai_diffae.bundle.layout import CONFIG, FIRST_STAGE_PREFIX, MODEL, check_trained, newest_files
from monai_diffae.bundle.loading import build
from monai_diffae.bundle.weights import read_weights
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError
from monai_diffae.networks import FirstStage

logger = logging.getLogger(__name__)

_INTENSITY_KEYS = ("intensity", "percentiles", "window_hu", "model_range", "spacing_mm")


def load_first_stage(
    models: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    prefix: str = "",
    sha256: str | None = None,
) -> FirstStage:
    """Load a trained first stage, frozen and in evaluation mode.

    Args:
        models: the ``models`` folder with its files.
        device: where to compute.
        prefix: prefix of the names of its files.
        sha256: checksum of its weights; None: any weights are accepted.

    Raises:
        ConfigError: there is no trained first stage, or its weights have another checksum.
        ScanError: its weights cannot be read.

    Example:
        >>> load_first_stage("my_first_stage/models")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_first_stage: there is no models/model.pt; train the bundle first, or ...
    """
    root = Path(models).parent
    folder = newest_files(Path(models))
    weights = folder / f"{prefix}{MODEL}"
    if prefix and not weights.is_file():
        raise ConfigError(f"{root.name}: there is no models/{weights.name}; copy the whole bundle again")
    check_trained(root, folder)
    if sha256 is not None and file_checksum(weights) != sha256:
        raise ConfigError(
            f"{weights.name}: is not the first stage that the model was trained with; copy the whole bundle again"
        )
    parser = read_config(folder / f"{prefix}{CONFIG}")
    # These keys are set in case the folder is that of a model on latents, which is reported below.
    parser.update({"bundle_root": str(root), "device": device})
    network = build(parser, "network_def", nn.Module)
    if not isinstance(network, FirstStage):
        raise ConfigError(
            f"{root.name}: is a {type(network).__name__}, not a first stage; use a trained autoencoder_kl_3d"
        )
    network.load_state_dict(read_weights(weights, network))
    if network.latent_std.isnan():
        raise ConfigError(
            f"{weights.name}: the scale of its latents is not measured yet; train it at least to its first validation"
        )
    return network.to(device).eval().requires_grad_(False)


def self_contained(config: dict[str, Any], models: str | os.PathLike[str]) -> dict[str, Any]:
    """A model's configuration that loads its first stage from the model's own folder.

    A warning is logged if the first stage was trained with another intensity scaling or spacing than the model.
    ``configs/latent_space.json`` calls this.

    Args:
        config: the model's configuration, from :func:`~monai_diffae.bundle.config.model_config`.
        models: the ``models`` folder of the first stage's own bundle.
    """
    folder = newest_files(Path(models))
    trained_on = read_config(folder / CONFIG)
    different = [key for key in _INTENSITY_KEYS if key in config and trained_on.get(key, config[key]) != config[key]]
    if different:
        logger.warning("the first stage was trained with other values of %s than this model", ", ".join(different))
    described = {key: value for key, value in config.items() if key not in ("device", "first_stage_bundle")}
    described["first_stage"] = {
        "_target_": "monai_diffae.bundle.load_first_stage",
        "models": "$@bundle_root + '/models'",
        "prefix": FIRST_STAGE_PREFIX,
        "sha256": file_checksum(folder / MODEL),
        "device": "@device",
    }
    return described


def check_latent_image_size(first_stage: FirstStage, network: nn.Module, image_size: Sequence[int]) -> None:
    """Check that the first stage, and then the network on its latents, can halve images of this size.

    Raises:
        ConfigError: they cannot; the message names the nearest usable size.
    """
    factors = first_stage.size_divisors
    own: Sequence[int] = getattr(network, "size_divisors", [1] * len(factors))
    config_values.check_image_size(image_size, [f * d for f, d in zip(factors, own, strict=True)])
