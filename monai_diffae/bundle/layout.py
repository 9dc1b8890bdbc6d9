"""The names of the files in a bundle folder."""

from __future__ import annotations

import os
from pathlib import Path

from monai_diffae.errors import ConfigError

CONFIGS, MODELS, PICTURES = "configs", "models", "pictures"

TRAIN, TRAIN_LATENT, DISTILL = "train.json", "train_latent.json", "distill.json"
INFERENCE, EVALUATE = "inference.json", "evaluate.json"
METADATA = "metadata.json"  # MONAI's description of a bundle
MODEL_CARD = "docs/README.md"
MULTI_GPU = "multi_gpu_"  # prefix of the file in ``CONFIGS`` that is laid over a training configuration
MODEL = "model.pt"  # the averaged weights as a flat state dict
SAFE_MODEL = "model.safetensors"  # the same weights, as a bundle with weights is shipped
CONFIG = "config.json"  # describes the network, preprocessing and inferer of ``MODEL``
METRICS = "metrics.json"  # the metrics of the last validation, such as ``z_sem_usage``
ANOMALY = "anomaly.pt"  # the residuals of held-out cases, with which anomaly maps and scores are calibrated
SAFE_ANOMALY = "anomaly.safetensors"  # the same, as it is shipped with weights
CHECKPOINT = "checkpoint.pt"  # everything that a training needs to resume
TRAINING = "training.json"  # the settings of the training, as an overlay of its configuration
PROVENANCE = "provenance.json"  # from which official checkpoint the weights are
NETWORKS = "networks.json"  # describes the networks that ``export`` wrote beside it

LATENT_PREFIX = "latent_"  # prefix of the files of a latent DDIM
LATENT_MODEL, LATENT_CONFIG = "latent_model.pt", "latent_config.json"
LATENT_SAFE_MODEL = f"{LATENT_PREFIX}{SAFE_MODEL}"
FAST_PREFIX = "fast_"  # prefix of the files of a fast decoder
FAST_MODEL, FAST_CONFIG = "fast_model.pt", "fast_config.json"
FIRST_STAGE_PREFIX = "first_stage_"  # prefix of the files of a first stage beside the model on its latents

LOADED_FILES = (MODEL, CONFIG, f"{FIRST_STAGE_PREFIX}{MODEL}", f"{FIRST_STAGE_PREFIX}{CONFIG}")
"""The files that a trained model is loaded from."""

MODEL_FILES = (*LOADED_FILES, SAFE_MODEL, CHECKPOINT, TRAINING, METRICS, ANOMALY, PROVENANCE)
"""The files that belong to a model and are replaced together."""

LATENT_FILES = tuple(f"{LATENT_PREFIX}{name}" for name in (MODEL, SAFE_MODEL, CONFIG, CHECKPOINT, TRAINING, METRICS))
"""The files of a latent DDIM; they name the autoencoder that they belong to."""

FAST_FILES = tuple(f"{FAST_PREFIX}{name}" for name in (MODEL, CONFIG, CHECKPOINT, TRAINING, METRICS))
"""The files of a fast decoder; they name the autoencoder that they belong to."""

FILES_THAT_RUN = {
    MODELS: (CONFIG, LATENT_CONFIG, f"{FIRST_STAGE_PREFIX}{CONFIG}"),
    CONFIGS: (TRAIN, TRAIN_LATENT, DISTILL),
}
"""The configurations that commands build or run, by their folders. Others are for MONAI's own tools."""

NEXT = "next"  # folder in ``MODELS`` with a newer set of all these files, while they are moved to their places


def models_folder(bundle: str | os.PathLike[str]) -> Path:
    """The folder with a bundle's model: ``models``, or ``models/next`` while a newer model is put in its place."""
    return newest_files(Path(bundle) / MODELS)


def newest_files(models: Path) -> Path:
    """A ``models`` folder, or the folder ``next`` in it while a newer model is put in its place."""
    newer = models / NEXT
    return newer if newer.is_dir() else models


def model_config_file(bundle: str | os.PathLike[str]) -> Path:
    """The file that describes a bundle's model: ``models/config.json``, or ``configs/train.json`` without it."""
    written_by_training = models_folder(bundle) / CONFIG
    return written_by_training if written_by_training.is_file() else Path(bundle) / CONFIGS / TRAIN


def check_trained(bundle: str | os.PathLike[str], models: Path, *names: str) -> None:
    """Check that a bundle has the files of a trained model; without ``names``, the weights.

    Example:
        >>> check_trained("my_bundle", Path("my_bundle/models"))
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_bundle: there is no models/model.pt; train the bundle first, or ...
    """
    for name in names or (MODEL,):
        if not (models / name).is_file():
            other = "choose a trained one" if Path(bundle).is_dir() else "check the path: there is no such folder"
            raise ConfigError(f"{Path(bundle).name}: there is no models/{name}; train the bundle first, or {other}")
