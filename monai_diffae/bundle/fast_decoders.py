"""The fast decoder of a bundle: loading, description and completion."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from monai_diffae.bundle.folders import export_bundle
from monai_diffae.bundle.json_files import read_values
from monai_diffae.bundle.layout import FAST_CONFIG, FAST_MODEL, MODELS, models_folder
from monai_diffae.bundle.weights import read_weights
from monai_diffae.errors import ConfigError
from monai_diffae.inferers.fast_decoder import FastDecoder

_TRAIN_IT = "train it again with monai-diffae distill"


def export_fast_bundle(bundle_root: str | os.PathLike[str], output_dir: str | os.PathLike[str], folder: Path) -> None:
    """Copy the bundle, its model and its fast decoder to ``folder``, but nothing of the data."""
    export_bundle(Path(bundle_root), Path(bundle_root), folder)
    for file in (FAST_MODEL, FAST_CONFIG):
        shutil.copy2(models_folder(output_dir) / file, folder / MODELS / file)


def fast_decoder_config(levels: Sequence[int], autoencoder_sha256: str) -> dict[str, Any]:
    """What is written beside the weights: the levels of the steps, and to which autoencoder they belong."""
    return {"levels": list(levels), "autoencoder_sha256": autoencoder_sha256}


def read_fast_decoder(
    models: Path, network: nn.Module, autoencoder_sha256: str, device: torch.device | str
) -> FastDecoder:
    """Read the fast decoder of an autoencoder, whose ``unet`` has the fast decoder's shape."""
    if not (models / FAST_MODEL).is_file():
        raise ConfigError("decoder: there is no fast decoder in this bundle; train it with monai-diffae distill")
    config = read_values(models / FAST_CONFIG, _TRAIN_IT)
    levels = config.get("levels")
    if not _are_levels(levels):
        raise ConfigError(f"{FAST_CONFIG}: does not describe a fast decoder; {_TRAIN_IT}")
    if config.get("autoencoder_sha256") != autoencoder_sha256:
        raise ConfigError(f"{FAST_MODEL}: belongs to another autoencoder than models/model.pt; {_TRAIN_IT}")
    unet: nn.Module = deepcopy(network.unet)  # type: ignore[assignment]
    unet.load_state_dict(read_weights(models / FAST_MODEL, unet))
    return FastDecoder(unet.to(device).eval().requires_grad_(False), tuple(levels))


def _are_levels(levels: Any) -> TypeGuard[list[int]]:
    """Whether these are two or more falling levels that end at x0."""
    if not isinstance(levels, list) or not all(type(level) is int for level in levels):
        return False
    return levels[1:] != [] and levels[-1] == -1 and all(a > b for a, b in pairwise(levels))
