"""Metrics: reconstruction errors, validation loss, use of z_sem, statistics of x_T, and copies among samples."""

from monai_diffae.metrics.copying import CopyingRatio
from monai_diffae.metrics.noise import noise_statistics
from monai_diffae.metrics.reconstruction import reconstruction_errors
from monai_diffae.metrics.validation_loss import ValidationLoss, ZSemUsage

__all__ = ["CopyingRatio", "ValidationLoss", "ZSemUsage", "noise_statistics", "reconstruction_errors"]
