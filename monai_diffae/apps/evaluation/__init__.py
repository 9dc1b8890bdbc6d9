"""Commands that evaluate embeddings and models, and the calibration at the end of a training."""

from typing import Any

__all__ = ["calibrate_trained"]


def calibrate_trained(*args: Any, **kwargs: Any) -> None:
    """Call :func:`~monai_diffae.apps.evaluation.calibration.calibrate_trained`, whose imports take long."""
    from monai_diffae.apps.evaluation import calibration

    calibration.calibrate_trained(*args, **kwargs)
