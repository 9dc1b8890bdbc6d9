"""Metrics: image quality, reconstruction errors, anomaly maps, validation loss, use of z_sem, x_T, copies."""

from monai_diffae.metrics.anomaly import (
    anomaly_maps,
    cross_fitted_maps,
    highest_mean,
    residual_spread,
    smoothed_residuals,
)
from monai_diffae.metrics.codes import changed_views, level_losses, noise_statistics
from monai_diffae.metrics.deep_features import (
    InceptionFeatures,
    PerceptualDistance,
    RadImageNetFeatures,
    frechet_distance,
    kernel_distance,
    precision_and_recall,
)
from monai_diffae.metrics.image_quality import ImageQuality, reconstruction_errors
from monai_diffae.metrics.training import CopyingRatio, ValidationLoss, ZSemUsage

__all__ = [
    "CopyingRatio", "ImageQuality", "InceptionFeatures", "PerceptualDistance", "RadImageNetFeatures",
    "ValidationLoss", "ZSemUsage", "anomaly_maps", "changed_views", "cross_fitted_maps", "frechet_distance",
    "highest_mean", "kernel_distance", "level_losses", "noise_statistics", "precision_and_recall",
    "reconstruction_errors", "residual_spread", "smoothed_residuals",
]  # fmt: skip
