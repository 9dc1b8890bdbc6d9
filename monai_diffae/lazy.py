"""Modules that are imported when they are first used, so that ``--help`` loads neither torch nor pandas.

A command imports what it needs from here, as ``from monai_diffae.lazy import np, torch``; a type checker sees the real
modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any


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
    from monai_diffae.data import atomic, embeddings, scans
    from monai_diffae.latents import association, harmonization, targets
else:
    np, pd, torch = _Lazy("numpy"), _Lazy("pandas"), _Lazy("torch")
    diffusion, inferers, latents = (_Lazy(f"monai_diffae.{room}") for room in ("diffusion", "inferers", "latents"))
    metrics, pictures, transforms = (_Lazy(f"monai_diffae.{room}") for room in ("metrics", "pictures", "transforms"))
    session = _Lazy("monai_diffae.apps.session")
    atomic, embeddings, scans = (_Lazy(f"monai_diffae.data.{module}") for module in ("atomic", "embeddings", "scans"))
    association, harmonization, targets = (
        _Lazy(f"monai_diffae.latents.{module}") for module in ("association", "harmonization", "targets")
    )

__all__ = [
    "association", "atomic", "diffusion", "embeddings", "harmonization", "inferers", "latents", "metrics", "np", "pd",
    "pictures", "scans", "session", "targets", "torch", "transforms",
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
