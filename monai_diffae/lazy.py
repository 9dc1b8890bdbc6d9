"""Modules that are imported when they are first used, so that ``--help`` loads neither torch nor pandas.

A command imports what it needs from here, as ``from monai_diffae.lazy import np, torch``; a type checker sees the real
modules.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

# Half of the seconds that ``import monai`` takes; most commands use none of them
_OPTIONAL = ("bs4", "lpips", "matplotlib", "mlflow", "pandas", "pydicom", "scipy", "skimage", "sklearn", "torchvision")


class _Lazy:
    """Stands for a module: each attribute is that of the module, which is imported for the first one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from monai_diffae import diffusion, inferers, latents, metrics, pictures, transforms
    from monai_diffae.apps import session
    from monai_diffae.data import embeddings, scans
else:
    np, pd, torch = _Lazy("numpy"), _Lazy("pandas"), _Lazy("torch")
    diffusion, inferers, latents = (_Lazy(f"monai_diffae.{room}") for room in ("diffusion", "inferers", "latents"))
    metrics, pictures, transforms = (_Lazy(f"monai_diffae.{room}") for room in ("metrics", "pictures", "transforms"))
    session = _Lazy("monai_diffae.apps.session")
    embeddings, scans = (_Lazy(f"monai_diffae.data.{module}") for module in ("embeddings", "scans"))

__all__ = [
    "diffusion", "embeddings", "inferers", "latents", "metrics", "np", "pd", "pictures", "scans", "session", "torch",
    "transforms",
]  # fmt: skip


def attach(room: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package ``room`` whose names are imported from these modules when they are first used.

    Example:
        >>> attach("monai_diffae.data", {"Case": "cases"})("Case")
        <class 'monai_diffae.data.cases.Case'>
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(import_module(f"{room}.{modules[name]}"), name)

    return get


def put_off_optional_packages() -> None:
    """Let MONAI (1.6.1) and Ignite (0.5.4), if not imported yet, import what few commands need when it is first used.

    This halves the seconds before a command begins. Nothing is missing, but the plots of MONAI in Jupyter notebooks.
    """
    if not ("monai" in sys.modules or _Finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder)


class _Finder:
    """Finds the modules through which MONAI and Ignite import what is put off."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        monai = sys.modules.get("monai")
        if name == "matplotlib" and monai is not None and not hasattr(monai, "__all__"):
            raise ModuleNotFoundError(name)  # for its plots in notebooks, which MONAI omits then
        changes = {"monai.utils.module": _change_optional_import, "torch.distributed.optim": _change_optimizers}
        spec = PathFinder.find_spec(name, path) if name in changes else None
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = partial(changes[name], loader.exec_module)
        return spec


def _change_optional_import(run: Callable[[ModuleType], None], module: Any) -> None:
    run(module)
    module.optional_import = _put_off(module.optional_import)


def _change_optimizers(run: Callable[[ModuleType], None], module: Any) -> None:
    # Ignite needs only the name of this class, and everything else of the module would load torch's compiler
    def load(name: str) -> Any:
        if name.startswith("__"):  # ``inspect`` asks every module for some of these
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        if vars(module).pop("__getattr__", None) is not None:
            run(module)
        return getattr(module, name)

    module.__getattr__ = load
    module.ZeroRedundancyOptimizer = _Optional(lambda: load("functional_adam") and module.ZeroRedundancyOptimizer)


def _put_off(optional_import: Callable[..., tuple[Any, bool]]) -> Callable[..., tuple[Any, bool]]:
    def put_off(module: str, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        package, name = module.partition(".")[0], kwargs.get("name", "")
        if package not in _OPTIONAL or PathFinder.find_spec(package) is None:
            return optional_import(module, *args, **kwargs)
        if name.endswith("Exception"):  # for ``except``, which takes nothing but a class
            return type(name, (Exception,), {}), True
        return _Optional(lambda: optional_import(module, *args, **kwargs)[0]), True

    return put_off


class _Optional:
    """Stands for a module, function or class of an optional package."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._load()(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._load())
