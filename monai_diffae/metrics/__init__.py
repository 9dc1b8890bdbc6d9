"""Metrics: image quality, reconstruction errors, anomaly maps, validation loss, use of z_sem, x_T, copies."""

from monai_diffae.metrics.anomaly import (
    anomaly_maps,
    cross_fitted_maps,
    highest_mean,
    residual_spread,
    smoothed_residuals,
)
from monai_diffae.metrics.copying import CopyingRatio
from monai_diffae.metrics.feature_distances import frechet_distance, kernel_distance, precision_and_recall
from monai_diffae.metrics.image_features import InceptionFeatures, RadImageNetFeatures
from monai_diffae.metrics.image_quality import ImageQuality
from monai_diffae.metrics.noise import noise_statistics
from monai_diffae.metrics.perceptual_distance import PerceptualDistance
from monai_diffae.metrics.reconstruction import reconstruction_errors
from monai_diffae.metrics.validation_loss import ValidationLoss, ZSemUsage
from monai_diffae.metrics.views import changed_views
from monai_diffae.metrics.z_usage import LEAST_USAGE, level_losses, warn_if_unused

__all__ = [
    "LEAST_USAGE",
    "CopyingRatio",
    "ImageQuality",
    "InceptionFeatures",
    "PerceptualDistance",
    "RadImageNetFeatures",
    "ValidationLoss",
    "ZSemUsage",
    "anomaly_maps",
    "changed_views",
    "cross_fitted_maps",
    "frechet_distance",
    "highest_mean",
    "kernel_distance",
    "level_losses",
    "noise_statistics",
    "precision_and_recall",
    "reconstruction_errors",
    "residual_spread",
    "smoothed_residuals",
    "warn_if_unused",
]
