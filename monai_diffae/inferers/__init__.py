"""Inference with trained networks: encoding, inversion, decoding, and sampling of z_sem. Tensors only."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
