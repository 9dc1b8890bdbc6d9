"""Commands that make a model, and the data of their training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_diffae.apps.training.latent_data import embedded_cohort, training_statistics
    from monai_diffae.apps.training.teaching import (
        image_loss,
        open_teacher,
        read_teaching_cases,
        student,
        teacher_levels,
        teaching_trajectories,
    )
    from monai_diffae.apps.training.watched import TrainingReport, WatchedTraining, train_watched

_TEACHING = (
    "image_loss", "open_teacher", "read_teaching_cases", "student", "teacher_levels", "teaching_trajectories",
)  # fmt: skip
_LATENT_DATA = ("embedded_cohort", "training_statistics")

__all__ = [
    "TrainingReport",
    "WatchedTraining",
    "embedded_cohort",
    "image_loss",
    "open_teacher",
    "read_teaching_cases",
    "student",
    "teacher_levels",
    "teaching_trajectories",
    "train_watched",
    "training_statistics",
]


def __getattr__(name: str) -> Any:
    # imported when it is first used: the command line imports this package for the commands' help
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "latent_data" if name in _LATENT_DATA else "teaching" if name in _TEACHING else "watched"
    return getattr(import_module(f"{__name__}.{module}"), name)
