"""Scans, cohorts and splits, from files to arrays. This package does not use networks.

The names in ``__init__.pyi`` are imported when they are first used, so that reading a cohort loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
