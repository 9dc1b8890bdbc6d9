"""Bundle folders: their files, the model in them, and the training that makes it.

The names in ``__init__.pyi`` are imported when they are first used, as most of them load torch and MONAI.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
