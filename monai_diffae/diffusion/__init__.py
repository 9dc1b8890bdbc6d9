"""The diffusion mathematics: noise schedules, solvers and inversion. Tensors only.

Each name of ``__init__.pyi`` is imported when it is first used, so that settings and seeds can be imported without
torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
