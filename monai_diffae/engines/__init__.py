"""MONAI and Ignite engines that train and validate, and the seeds and batches that make them reproducible."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
