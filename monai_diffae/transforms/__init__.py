"""MONAI dictionary transforms: checked reading, scaling to the model's range, and the way back to the scan."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
