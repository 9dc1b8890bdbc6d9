"""Commands that make a model, and what the configurations of their trainings call."""

from monai_diffae.apps.training.distill import (
    image_loss,
    open_teacher,
    read_teaching_cases,
    student,
    teacher_levels,
    teaching_trajectories,
)
from monai_diffae.apps.training.train import TrainingEnd, TrainingReport, train_with_callbacks
from monai_diffae.apps.training.train_latent import embedded_cohort, training_statistics

__all__ = [
    "TrainingEnd", "TrainingReport", "embedded_cohort", "image_loss", "open_teacher", "read_teaching_cases",
    "student", "teacher_levels", "teaching_trajectories", "train_with_callbacks", "training_statistics",
]  # fmt: skip
