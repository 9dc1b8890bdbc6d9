"""The names of the files in a bundle folder."""

# tested in tests/bundle/test_loading.py

from __future__ import annotations

import os
from pathlib import Path

CONFIGS, MODELS = "configs", "models"

TRAIN, INFERENCE = "train.json", "inference.json"  # in ``CONFIGS``
MODEL = "model.pt"  # the averaged weights as a flat state dict
CONFIG = "config.json"  # describes the network, preprocessing and inferer of ``MODEL``
ANOMALY = "anomaly.pt"  # the residuals of held-out cases, with which anomaly maps and scores are calibrated
CHECKPOINT = "checkpoint.pt"  # everything that a training needs to resume

LATENT_MODEL, LATENT_CONFIG = "latent_model.pt", "latent_config.json"
FIRST_STAGE_PREFIX = "first_stage_"  # prefix of the files of a first stage beside the model on its latents


def model_config_file(bundle: str | os.PathLike[str]) -> Path:
    """The file that describes a bundle's model: ``models/config.json``, or ``configs/train.json`` without it."""
    written_by_training = Path(bundle) / MODELS / CONFIG
    return written_by_training if written_by_training.is_file() else Path(bundle) / CONFIGS / TRAIN
