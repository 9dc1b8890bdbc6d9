"""The names of the files in a bundle folder."""

from __future__ import annotations

CONFIGS, MODELS = "configs", "models"

MODEL = "model.pt"  # the averaged weights as a flat state dict
CONFIG = "config.json"  # describes the network, preprocessing and inferer of ``MODEL``
CHECKPOINT = "checkpoint.pt"  # everything that a training needs to resume

LATENT_MODEL, LATENT_CONFIG = "latent_model.pt", "latent_config.json"
FIRST_STAGE_PREFIX = "first_stage_"  # of the files of an autoencoder whose latents a model works on
