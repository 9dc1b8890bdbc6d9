"""Commands that make a model."""

from __future__ import annotations

from monai_diffae.apps.training.train_latent import embedded_cohort, training_statistics

__all__ = ["embedded_cohort", "training_statistics"]
