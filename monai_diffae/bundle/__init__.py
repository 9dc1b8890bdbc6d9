"""Bundle folders: their files, the model in them, and the training that makes it."""

from __future__ import annotations

from monai_diffae.bundle import layout
from monai_diffae.bundle.code import trusting
from monai_diffae.bundle.config import check_image_size
from monai_diffae.bundle.folders import describe_folder, init_bundle, publish
from monai_diffae.bundle.loading import (
    TrainedLatent,
    check_latent_image_size,
    describe_fast_decoder,
    load_bundle,
    load_first_stage,
    load_latent,
    preprocessing_of,
)
from monai_diffae.bundle.model import Anomaly, AnomalyDetector, AnomalySettings, ModelCase, TrainedBundle
from monai_diffae.bundle.model_file import checksum
from monai_diffae.bundle.training import (
    TrainingDescription,
    check_all_set,
    check_monai_weights,
    check_run,
    describe_latent,
    describe_model,
    running_config,
)

__all__ = [
    "Anomaly",
    "AnomalyDetector",
    "AnomalySettings",
    "ModelCase",
    "TrainedBundle",
    "TrainedLatent",
    "TrainingDescription",
    "check_all_set",
    "check_image_size",
    "check_latent_image_size",
    "check_monai_weights",
    "check_run",
    "checksum",
    "describe_fast_decoder",
    "describe_folder",
    "describe_latent",
    "describe_model",
    "init_bundle",
    "layout",
    "load_bundle",
    "load_first_stage",
    "load_latent",
    "preprocessing_of",
    "publish",
    "running_config",
    "trusting",
]
