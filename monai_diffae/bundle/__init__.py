"""Bundle folders: their files, the model in them, and the training that makes it.

The names below are imported when they are first used, as most of them load torch and MONAI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_diffae.lazy import attach

if TYPE_CHECKING:
    from monai_diffae.bundle.code import trusting as trusting
    from monai_diffae.bundle.config import check_image_size as check_image_size
    from monai_diffae.bundle.folders import describe_folder as describe_folder
    from monai_diffae.bundle.folders import init_bundle as init_bundle
    from monai_diffae.bundle.folders import publish as publish
    from monai_diffae.bundle.loading import TrainedLatent as TrainedLatent
    from monai_diffae.bundle.loading import check_latent_image_size as check_latent_image_size
    from monai_diffae.bundle.loading import describe_fast_decoder as describe_fast_decoder
    from monai_diffae.bundle.loading import load_bundle as load_bundle
    from monai_diffae.bundle.loading import load_first_stage as load_first_stage
    from monai_diffae.bundle.loading import load_latent as load_latent
    from monai_diffae.bundle.loading import preprocessing_of as preprocessing_of
    from monai_diffae.bundle.model import Anomaly as Anomaly
    from monai_diffae.bundle.model import AnomalyDetector as AnomalyDetector
    from monai_diffae.bundle.model import AnomalySettings as AnomalySettings
    from monai_diffae.bundle.model import ModelCase as ModelCase
    from monai_diffae.bundle.model import TrainedBundle as TrainedBundle
    from monai_diffae.bundle.model_file import checksum as checksum
    from monai_diffae.bundle.training import TrainingDescription as TrainingDescription
    from monai_diffae.bundle.training import check_all_set as check_all_set
    from monai_diffae.bundle.training import check_monai_weights as check_monai_weights
    from monai_diffae.bundle.training import check_run as check_run
    from monai_diffae.bundle.training import describe_latent as describe_latent
    from monai_diffae.bundle.training import describe_model as describe_model
    from monai_diffae.bundle.training import running_config as running_config

_NAMES = {
    "code": ("trusting",),
    "config": ("check_image_size",),
    "folders": ("describe_folder", "init_bundle", "publish"),
    "loading": (
        "TrainedLatent", "check_latent_image_size", "describe_fast_decoder", "load_bundle", "load_first_stage",
        "load_latent", "preprocessing_of",
    ),
    "model": ("Anomaly", "AnomalyDetector", "AnomalySettings", "ModelCase", "TrainedBundle"),
    "model_file": ("checksum",),
    "training": (
        "TrainingDescription", "check_all_set", "check_monai_weights", "check_run", "describe_latent", "describe_model",
        "running_config",
    ),
}  # fmt: skip
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_MODULES]

__getattr__ = attach(__name__, _MODULES)
