"""Bundle folders: their files, configuration, checks, and the trained models in them."""

from __future__ import annotations

from monai_diffae.bundle.anomaly import Anomaly, AnomalyDetector, AnomalySettings
from monai_diffae.bundle.anomaly_calibration import calibrate_trained
from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.config import (
    check_all_set,
    check_image_size,
    check_running_config,
    model_config,
    running_config,
)
from monai_diffae.bundle.fast_decoders import export_fast_bundle, fast_decoder_config
from monai_diffae.bundle.first_stages import check_latent_image_size, load_first_stage, self_contained
from monai_diffae.bundle.folders import complete_bundle, export_bundle, init_bundle
from monai_diffae.bundle.given_data import use_given_data
from monai_diffae.bundle.latent_ddim import (
    TrainedLatent,
    complete_latent_bundle,
    export_latent_bundle,
    latent_config,
    load_latent,
    set_statistics,
)
from monai_diffae.bundle.loading import TrainedBundle, grid_affine, load_bundle
from monai_diffae.bundle.opened_case import OpenedCase
from monai_diffae.bundle.publication import publish
from monai_diffae.bundle.run_overrides import run_overrides
from monai_diffae.bundle.run_preparation import check_trained_weights, prepare_run
from monai_diffae.bundle.training_description import TrainingDescription
from monai_diffae.bundle.training_settings import training_settings
from monai_diffae.bundle.trust import trusting
from monai_diffae.bundle.warm_start import check_start

__all__ = [
    "Anomaly",
    "AnomalyDetector",
    "AnomalySettings",
    "OpenedCase",
    "TrainedBundle",
    "TrainedLatent",
    "TrainingDescription",
    "calibrate_trained",
    "check_all_set",
    "check_image_size",
    "check_latent_image_size",
    "check_running_config",
    "check_start",
    "check_trained_weights",
    "checksum",
    "complete_bundle",
    "complete_latent_bundle",
    "export_bundle",
    "export_fast_bundle",
    "export_latent_bundle",
    "fast_decoder_config",
    "grid_affine",
    "init_bundle",
    "latent_config",
    "load_bundle",
    "load_first_stage",
    "load_latent",
    "model_config",
    "prepare_run",
    "publish",
    "run_overrides",
    "running_config",
    "self_contained",
    "set_statistics",
    "training_settings",
    "trusting",
    "use_given_data",
]
