"""A MONAI Label app that serves a trained bundle: inference, active learning and training at the annotator's side.

Only this folder depends on MONAI Label (0.8.5, and its unreleased successor). ``monailabel`` is imported when a
name below is first used, so the commands ``label-app`` and ``label-server`` are quick.
"""

from monai_diffae.lazy import attach

MODULES = {"AppFolder": "label_app", "DiffAEApp": "app"}

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
