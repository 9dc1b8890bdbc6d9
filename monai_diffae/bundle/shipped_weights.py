"""The weights of shipped bundles: stored as safetensors, without pickles."""

# tested in tests/bundles/test_bundles_with_weights.py

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.described_model import describe_model
from monai_diffae.bundle.layout import (
    CONFIGS,
    EVALUATE,
    INFERENCE,
    LATENT_CONFIG,
    LATENT_MODEL,
    LATENT_SAFE_MODEL,
    MODEL,
    MODELS,
    SAFE_MODEL,
    TRAIN,
)
from monai_diffae.bundle.training_settings import read_training_settings
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.official.checkpoint_files import read_safetensors


def complete_weights(bundle: Path) -> None:
    """Complete a bundle whose weights are ``.safetensors`` files: state dicts beside them, and configurations.

    The state dicts are what MONAI's tools load. Their bytes depend on the version of torch, so the latent DDIM is told
    to which file it belongs. ``train.json`` gets the settings of the training, too.

    Args:
        bundle: the bundle's folder, with the configurations of an untrained bundle.

    Raises:
        UnsafeInputError: a file of weights is damaged.
        MachineError: the folder cannot be written.
    """
    models = bundle / MODELS
    for source, target in ((SAFE_MODEL, MODEL), (LATENT_SAFE_MODEL, LATENT_MODEL)):
        if (models / source).is_file():
            tensors, _ = read_safetensors(models / source)
            write_atomic(models / target, partial(_save, tensors))
    if (models / LATENT_CONFIG).is_file():
        latent = json.loads((models / LATENT_CONFIG).read_text(encoding="utf-8"))
        write_json(models / LATENT_CONFIG, {**latent, "autoencoder_sha256": checksum(bundle)})
    describe_model(bundle, (TRAIN, INFERENCE, EVALUATE))
    train = bundle / CONFIGS / TRAIN
    write_json(train, _with_settings(json.loads(train.read_text(encoding="utf-8")), read_training_settings(models)))


def _with_settings(content: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the settings of a training, which are values by ids such as ``trainer#max_epochs``."""
    for key, value in settings.items():
        *folders, name = key.split("#")
        part: Any = content
        for each in folders:
            part = part[int(each)] if isinstance(part, list) else part[each]
        part[int(name) if isinstance(part, list) else name] = value
    return content


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as stream:  # with a path, torch writes its name into the file
        torch.save(tensors, stream)
