"""The metrics of a training's last validation, which are kept beside the model."""

from __future__ import annotations

import json
import os

from monai_diffae.bundle.layout import METRICS, models_folder


def last_usage(directory: str | os.PathLike[str]) -> float | None:
    """The last ``z_sem_usage`` of a bundle's training; None: not measured, as for imported weights.

    It is the denoising loss with another image's z_sem, divided by that with the image's own; 1: z_sem is not used.

    Example:
        >>> print(last_usage("no_such_bundle"))
        None
    """
    try:
        return float(json.loads((models_folder(directory) / METRICS).read_text())["z_sem_usage"])
    except (OSError, ValueError, KeyError, TypeError):  # the figure is for a warning only
        return None
