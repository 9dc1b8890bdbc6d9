"""Metrics: image quality, reconstruction errors, anomaly maps, validation loss, use of z_sem, x_T, copies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
