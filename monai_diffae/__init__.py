"""Diffusion autoencoders for medical scans, on MONAI.

The names in ``__init__.pyi`` are the public interface. Each is imported when it is first used, so
``import monai_diffae`` is quick.
"""

import os

# MLflow reports to its makers, and writes an installation id into the home folder, as soon as it is imported, which
# MONAI's handlers do. Therefore it is forbidden here, before any other import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
