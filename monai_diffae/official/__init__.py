"""Checkpoints of the official Diff-AE code (phizaz/diffae): their files, layout and weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
