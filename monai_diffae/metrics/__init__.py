"""Judgement: reconstruction errors, the validation loss, z_sem usage."""

from monai_diffae.metrics.reconstruction import reconstruction_errors
from monai_diffae.metrics.validation_loss import ValidationLoss, ZSemUsage

__all__ = ["ValidationLoss", "ZSemUsage", "reconstruction_errors"]
