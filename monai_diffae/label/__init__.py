"""A MONAI Label app that serves a trained bundle: inference, active learning and training at the annotator's side.

Only this folder depends on MONAI Label (0.8.5, and its unreleased successor). ``monailabel`` is imported when a
name of ``__init__.pyi`` is first used, so the commands ``label-app`` and ``label-server`` are quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
