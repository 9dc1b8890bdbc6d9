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
    import numpy.typing as npt
    import pandas as pd
    import torch

    from monai_diffae import bundle as bundles
    from monai_diffae import engines, inferers, latents, metrics, networks, official, pictures, transforms
    from monai_diffae.apps import provenance
    from monai_diffae.apps import session as sessions
    from monai_diffae.bundle import loading
    from monai_diffae.bundle import model as models
    from monai_diffae.data import cached, cohort_split, cohorts, scans
    from monai_diffae.data import embeddings as tables
    from monai_diffae.data.inspection import listing as listings
    from monai_diffae.data.inspection import survey as surveys
    from monai_diffae.data.inspection import twins
    from monai_diffae.inferers import paths
    from monai_diffae.latents import association, harmonization, label_changes, representation, statistics, targets
    from monai_diffae.transforms import writing
else:
    _ROOMS = ("engines", "inferers", "latents", "metrics", "networks", "official", "pictures", "transforms")
    _MODULES = {
        "np": "numpy", "npt": "numpy.typing", "pd": "pandas", "torch": "torch",
        **{name: f"monai_diffae.{name}" for name in _ROOMS}, "bundles": "monai_diffae.bundle",
        "provenance": "monai_diffae.apps.provenance", "sessions": "monai_diffae.apps.session",
        "loading": "monai_diffae.bundle.loading", "models": "monai_diffae.bundle.model",
        **{name: f"monai_diffae.data.{name}" for name in ("cached", "cohort_split", "cohorts", "scans")},
        "tables": "monai_diffae.data.embeddings", "listings": "monai_diffae.data.inspection.listing",
        "surveys": "monai_diffae.data.inspection.survey", "twins": "monai_diffae.data.inspection.twins",
        "paths": "monai_diffae.inferers.paths", "writing": "monai_diffae.transforms.writing",
        **{name: f"monai_diffae.latents.{name}"
           for name in ("association", "harmonization", "label_changes", "representation", "statistics", "targets")},
    }  # fmt: skip
    globals().update({name: _Lazy(module) for name, module in _MODULES.items()})

__all__ = [
    "association", "bundles", "cached", "cohort_split", "cohorts", "engines", "harmonization", "inferers",
    "label_changes", "latents", "listings", "loading", "metrics", "models", "networks", "np", "npt", "official",
    "paths", "pd", "pictures", "provenance", "representation", "scans", "sessions", "statistics", "surveys", "tables",
    "targets", "torch", "transforms", "twins", "writing",
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
