"""Diffusion autoencoders for medical scans, on MONAI.

The names below are the public interface. Each is imported when it is first used, so ``import monai_diffae`` is quick.
"""

import os

# MLflow reports to its makers, and writes an installation id into the home folder, as soon as it is imported, which
# MONAI's handlers do. Therefore it is forbidden here, before any other import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

from monai_diffae.apps.commands import COMMANDS
from monai_diffae.lazy import attach

__version__ = "0.1.0"

MODULES = {command.function: command.module for command in COMMANDS} | {
    "Choice": "apps.settings",
    "Decoding": "apps.settings",
    "DiffAEEncoder": "apps.embedding.estimator",
    "DiffusionAutoencoder": "networks",
    "DiffusionAutoencoderInferer": "inferers",
    "DiffusionSchedule": "diffusion",
    "EmbeddingIndex": "apps.embedding.index",
    "Reading": "apps.settings",
    "Run": "apps.settings",
    "Training": "apps.settings",
    "load_bundle": "bundle",
    "trusting": "bundle",
}
"""The module of each public name, which is imported when it is first used; ``__init__.pyi`` is made from this."""

__all__ = ["__version__", *sorted(MODULES)]


__getattr__ = attach(__name__, MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
