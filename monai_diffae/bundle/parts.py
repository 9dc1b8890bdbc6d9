"""Models beside the autoencoder of a bundle: first stage, latent DDIM and fast decoder."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from monai_diffae.bundle.config import build, check_sizes
from monai_diffae.bundle.description import resolved
from monai_diffae.bundle.layout import FAST_MODEL, LATENT_MODEL, model_file, models_folder
from monai_diffae.bundle.model_file import FIRST_STAGE, ModelFile, checksum, model_parser, read_model
from monai_diffae.bundle.parser import Parser
from monai_diffae.errors import ConfigError, DiffAEError, quoted
from monai_diffae.inferers import LatentInferer
from monai_diffae.inferers.fast_decoder import FastDecoder
from monai_diffae.latents.statistics import LatentStatistics
from monai_diffae.networks import FirstStage, LatentMLP

logger = logging.getLogger(__name__)

_DISTILL, _TRAIN_LATENT = "train it again with monai-diffae distill", "monai-diffae train-latent"


# -- first stage -------------------------------------------------------------------------------------------------------


def load_first_stage(bundle: str | os.PathLike[str], device: str | torch.device = "cpu") -> FirstStage:
    """Load a trained first stage, frozen and in evaluation mode.

    Args:
        bundle: its bundle, or the file of a model: its own, or that of a model on its latents.
        device: where to compute.

    Raises:
        ConfigError: there is no trained first stage.
        ScanError: its weights cannot be read.

    Example:
        >>> load_first_stage("my_first_stage")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_first_stage: there is no models/model.safetensors; train the bundle ...
    """
    model = read_model(model_file(bundle))
    if model.kind != "first_stage" and "first_stage" not in model.description:
        raise ConfigError(
            f"{Path(bundle).name}: is no first stage but a model of the kind {quoted(model.kind)}; use a trained "
            "autoencoder_kl_3d"
        )
    return first_stage_of(model).to(device)


def first_stage_of(model: ModelFile) -> FirstStage:
    """The first stage in the file of a model: the model itself, or the one on whose latents it works."""
    is_own = model.kind == "first_stage"
    definition = resolved(model.description, "network_def" if is_own else "first_stage")
    network = build(Parser({"network_def": definition}), "network_def", FirstStage)
    model.load_into(network, "" if is_own else FIRST_STAGE)
    if network.latent_std.isnan():
        raise ConfigError(
            f"{model.name}: the scale of its latents is not measured yet; train it at least to its first validation"
        )
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    network.description = {**model.description, "network_def": definition, "weights_sha256": digest.hexdigest()}
    return network.eval().requires_grad_(False)


def check_latent_image_size(first_stage: FirstStage, network: nn.Module, image_size: Sequence[int]) -> None:
    """Check that the first stage, and then the network on its latents, can halve images of this size.

    Raises:
        ConfigError: they cannot; the message names the nearest usable size.
    """
    factors = first_stage.size_divisors
    own: Sequence[int] = getattr(network, "size_divisors", [1] * len(factors))
    check_sizes(image_size, [f * d for f, d in zip(factors, own, strict=True)])


# -- latent DDIM -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedLatent:
    """A trained latent DDIM.

    Attributes:
        network: in evaluation mode, with the averaged weights and the statistics of its training set.
        inferer: samples z_sem from the network.
        sha256: SHA-256 of its file.
    """

    network: LatentMLP
    inferer: LatentInferer
    sha256: str = ""


def load_latent(bundle: str | os.PathLike[str], device: str | torch.device | None = None) -> TrainedLatent:
    """Load the latent DDIM of a trained bundle from ``models/latent_model.safetensors``.

    Args:
        bundle: the bundle's folder, or the file of its model.
        device: where to compute; None: the GPU if there is one.

    Raises:
        ConfigError: there is no latent DDIM, it belongs to another autoencoder, or the statistics of z_sem are unknown.
        ScanError: its weights cannot be read.
    """
    model = _read_latent(bundle)
    parser = model_parser(model.description)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = build(parser, "latent_network_def", LatentMLP)
    model.load_into(network)
    if network.z_std.isnan().any():
        raise ConfigError(
            f"{model.name}: the mean and std of z_sem are unknown; import the checkpoint again with the official "
            "latent.pkl as latent_statistics"
        )
    network.to(device).eval().requires_grad_(False)
    inferer = build(parser, "latent_inferer", LatentInferer)
    inferer.schedule.to(device)
    return TrainedLatent(network, inferer, model.sha256)


def latent_statistics(bundle: str | os.PathLike[str]) -> LatentStatistics | None:
    """Mean and standard deviation of z_sem over the training of a bundle's latent DDIM; None without a usable one.

    Example:
        >>> latent_statistics("no_bundle") is None
        True
    """
    if not (models_folder(bundle) / LATENT_MODEL).is_file():
        return None
    try:
        tensors = _read_latent(bundle).tensors
        return LatentStatistics(tensors["z_mean"].numpy(), tensors["z_std"].numpy())
    except (DiffAEError, KeyError, TypeError, ValueError) as error:
        logger.debug("the statistics of z_sem are not known: %s", error)
        return None


def _read_latent(bundle: str | os.PathLike[str]) -> ModelFile:
    path = models_folder(bundle) / LATENT_MODEL
    if not path.is_file():
        raise ConfigError(f"{Path(bundle).name}: there is no latent model; train it with {_TRAIN_LATENT}")
    model = read_model(path, "latent")
    if model.description.get("autoencoder_sha256") != checksum(bundle):
        name = Path(bundle).name
        raise ConfigError(
            f"{name}: the latent model belongs to another autoencoder; train it again with {_TRAIN_LATENT}"
        )
    return model


def set_statistics(network: LatentMLP, statistics: LatentStatistics) -> None:
    """Store the training set's statistics in a network, so that they are saved with its weights."""
    network.set_statistics(torch.from_numpy(statistics.mean), torch.from_numpy(statistics.std))


# -- fast decoder ------------------------------------------------------------------------------------------------------


def describe_fast_decoder(levels: Sequence[int], autoencoder_sha256: str) -> dict[str, Any]:
    """The description of a fast decoder: the levels of its steps, and the autoencoder that it belongs to."""
    return {"levels": list(levels), "autoencoder_sha256": autoencoder_sha256}


def load_fast_decoder(
    models: Path, network: nn.Module, autoencoder_sha256: str, device: torch.device | str
) -> tuple[FastDecoder, str]:
    """Load the fast decoder of an autoencoder, whose ``unet`` has its shape, and the SHA-256 of its file."""
    path = models / FAST_MODEL
    if not path.is_file():
        raise ConfigError("decoder: there is no fast decoder in this bundle; train it with monai-diffae distill")
    model = read_model(path, "fast")
    levels = model.description.get("levels")
    if not _are_levels(levels):
        raise ConfigError(f"{FAST_MODEL}: does not describe a fast decoder; {_DISTILL}")
    if model.description.get("autoencoder_sha256") != autoencoder_sha256:
        raise ConfigError(f"{FAST_MODEL}: belongs to another autoencoder; {_DISTILL}")
    unet: nn.Module = deepcopy(network.unet)  # type: ignore[assignment]
    model.load_into(unet)
    return FastDecoder(unet.to(device).eval().requires_grad_(False), tuple(levels)), model.sha256


def _are_levels(levels: Any) -> TypeGuard[list[int]]:
    """Whether these are two or more falling levels that end at x0."""
    if not isinstance(levels, list) or not all(type(level) is int for level in levels):
        return False
    return levels[1:] != [] and levels[-1] == -1 and all(a > b for a, b in pairwise(levels))
