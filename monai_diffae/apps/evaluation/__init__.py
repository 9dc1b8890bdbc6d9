"""Commands that evaluate embeddings and models, and the calibration at the end of a training."""

from monai_diffae.apps.evaluation.calibrate import calibrate_trained, finish_training

__all__ = ["calibrate_trained", "finish_training"]
