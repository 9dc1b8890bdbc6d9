"""Commands that make a model, and what the configurations of their trainings call."""

from monai_diffae.lazy import attach

MODULES = {
    **dict.fromkeys((
        "image_loss", "open_teacher", "read_teaching_cases", "student", "teacher_levels", "teaching_trajectories",
    ), "distill"),
    "train_with_callbacks": "train",
    **dict.fromkeys(("embedded_cohort", "training_statistics"), "train_latent"),
}  # fmt: skip

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
