"""The first stage of a diffusion autoencoder: read from its own bundle, then from the one that works on its latents."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_diffae.bundle import config_values
from monai_diffae.bundle.checksums import file_checksum
from monai_diffae.bundle.layout import CONFIG, FIRST_STAGE_PREFIX, MODEL
from monai_diffae.bundle.loading import build, read_model_config, read_weights
from monai_diffae.errors import ConfigError
from monai_diffae.networks import FirstStage

logger = logging.getLogger(__name__)

_OF_INTENSITIES = ("intensity", "percentiles", "window_hu", "model_range", "spacing_mm")


def load_first_stage(
    models: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    prefix: str = "",
    sha256: str | None = None,
) -> FirstStage:
    """A trained first stage, frozen, in evaluation mode.

    Args:
        models: the ``models`` folder that it lies in.
        device: where to.
        prefix: of the names of its files there.
        sha256: of its weights; None: whatever they are.

    Raises:
        ConfigError: there is none, it is another kind of model, or another one than ``sha256`` says.
        ScanError: its weights cannot be read.

    Example:
        >>> load_first_stage("my_first_stage/models")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_first_stage: there is no models/model.pt; train the first stage ...
    """
    folder = Path(models)
    weights = folder / f"{prefix}{MODEL}"
    if not weights.is_file():
        what = "train the first stage first" if not prefix else "copy the whole bundle again"
        raise ConfigError(
            f"{folder.parent.name}: there is no models/{weights.name}; {what}, or name a folder that has it"
        )
    if sha256 is not None and file_checksum(weights) != sha256:
        raise ConfigError(
            f"{weights.name}: is not the first stage that the model was trained with; copy the whole bundle again"
        )
    parser = read_model_config(folder / f"{prefix}{CONFIG}")
    parser.update({"bundle_root": str(folder.parent), "device": device})  # to tell a model that has a first stage, too
    network = build(parser, "network_def", nn.Module)
    if not isinstance(network, FirstStage):
        raise ConfigError(
            f"{folder.parent.name}: is a {type(network).__name__}, no first stage; name a trained autoencoder_kl_3d"
        )
    network.load_state_dict(read_weights(weights, network, may_be_unknown=("latent_mean", "latent_std")))
    if network.latent_std.isnan():
        raise ConfigError(
            f"{weights.name}: the scale of its latents is not measured yet; let its training reach a validation"
        )
    return network.to(device).eval().requires_grad_(False)


# -- what configs/latent_space.json calls ------------------------------------------------------------------------------


def self_contained(config: dict[str, Any], models: str | os.PathLike[str]) -> dict[str, Any]:
    """What describes a model, with the first stage that lies beside its weights instead of where it came from.

    Args:
        config: of :func:`~monai_diffae.bundle.config.model_config`.
        models: the ``models`` folder of the first stage's own bundle.
    """
    folder = Path(models)
    trained_on = read_model_config(folder / CONFIG)
    others = [key for key in _OF_INTENSITIES if key in config and trained_on.get(key, config[key]) != config[key]]
    if others:
        logger.warning("the first stage was trained with other %s than this model is", ", ".join(others))
    kept = {key: value for key, value in config.items() if key not in ("device", "first_stage_bundle")}
    kept["first_stage"] = {
        "_target_": f"{__name__}.{load_first_stage.__name__}",
        "models": "$@bundle_root + '/models'",
        "prefix": FIRST_STAGE_PREFIX,
        "sha256": file_checksum(folder / MODEL),
        "device": "@device",
    }
    return kept


def check_latent_image_size(first_stage: FirstStage, network: nn.Module, image_size: Sequence[int]) -> None:
    """Refuse a size that first stage and network cannot halve as often as both do.

    Raises:
        ConfigError: names the nearest sizes that can be used.
    """
    factors = first_stage.size_divisors
    own: Sequence[int] = getattr(network, "size_divisors", [1] * len(factors))
    config_values.check_image_size(image_size, [f * d for f, d in zip(factors, own, strict=True)])
