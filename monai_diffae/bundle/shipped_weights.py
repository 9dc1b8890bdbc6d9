"""The weights of shipped bundles: stored as safetensors, without pickles."""

from __future__ import annotations

import json
from pathlib import Path

from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.described_model import describe_model
from monai_diffae.bundle.layout import (
    LATENT_CONFIG,
    LATENT_MODEL,
    LATENT_SAFE_MODEL,
    MODEL,
    MODELS,
    SAFE_MODEL,
)
from monai_diffae.data.atomic import write_json
from monai_diffae.data.tensor_files import write_tensors
from monai_diffae.official.checkpoint_files import read_safetensors


def complete_weights(bundle: Path) -> None:
    """Complete a bundle whose weights are ``.safetensors`` files: write state dicts beside them, and configurations.

    MONAI's tools load the state dicts. Their bytes depend on the version of torch, so the checksum by which the latent
    DDIM names its autoencoder is computed here. ``train.json`` stays a recipe, as in every trained bundle: its runs
    read ``models/config.json`` and ``models/training.json`` when they start.
    """
    models = bundle / MODELS
    for source, target in ((SAFE_MODEL, MODEL), (LATENT_SAFE_MODEL, LATENT_MODEL)):
        if (models / source).is_file():
            tensors, _ = read_safetensors(models / source)
            write_tensors(tensors, models / target)
    if (models / LATENT_CONFIG).is_file():
        latent = json.loads((models / LATENT_CONFIG).read_text(encoding="utf-8"))
        write_json(models / LATENT_CONFIG, {**latent, "autoencoder_sha256": checksum(bundle)})
    describe_model(bundle)
