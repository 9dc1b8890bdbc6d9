"""A MONAI Label app that serves a trained bundle: inference, active learning and training at the annotator's side.

Only this folder depends on MONAI Label (0.8.5, and its unreleased successor). ``monailabel`` is imported when a
name below is first used, so the commands ``label-app`` and ``label-server`` are quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_diffae.lazy import attach

if TYPE_CHECKING:
    from monai_diffae.label.app import DiffAEApp as DiffAEApp
    from monai_diffae.label.label_app import AppFolder as AppFolder

_MODULES = {"AppFolder": "label_app", "DiffAEApp": "app"}

__all__ = [*_MODULES]

__getattr__ = attach(__name__, _MODULES)
