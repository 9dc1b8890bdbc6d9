"""Commands that evaluate embeddings and models, and the calibration at the end of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_diffae.apps.evaluation.calibration import calibrate_trained

__all__ = ["calibrate_trained"]


def __getattr__(name: str) -> Any:
    if name != "calibrate_trained":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from monai_diffae.apps.evaluation.calibration import calibrate_trained

    return calibrate_trained
