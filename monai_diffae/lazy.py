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
    from monai_diffae.apps.pages import data as page_data
    from monai_diffae.apps.pages import page as pages
    from monai_diffae.apps.pages import sections
    from monai_diffae.apps.training import speed as speeds
    from monai_diffae.bundle import loading
    from monai_diffae.bundle import model as models
    from monai_diffae.bundle import parser as parsing
    from monai_diffae.data import cached, cohort_split, cohorts, scans
    from monai_diffae.data import embeddings as tables
    from monai_diffae.data.inspection import listing as listings
    from monai_diffae.data.inspection import survey as surveys
    from monai_diffae.data.inspection import twins
    from monai_diffae.inferers import counterfactual, paths
    from monai_diffae.latents import association, directions, harmonization, representation, statistics, targets
    from monai_diffae.transforms import writing
else:
    _RENAMED = {
        "bundles": "bundle", "listings": "data.inspection.listing", "models": "bundle.model",
        "page_data": "apps.pages.data", "pages": "apps.pages.page", "parsing": "bundle.parser",
        "sessions": "apps.session", "speeds": "apps.training.speed", "surveys": "data.inspection.survey",
        "tables": "data.embeddings",
    }  # fmt: skip
    _ROOMS_AND_MODULES = (
        "engines", "inferers", "latents", "metrics", "networks", "official", "pictures", "transforms",
        "apps.pages.sections", "apps.provenance",
        "bundle.loading", "data.cached", "data.cohort_split", "data.cohorts", "data.inspection.twins", "data.scans",
        "inferers.counterfactual", "inferers.paths", "latents.association", "latents.directions",
        "latents.harmonization", "latents.representation", "latents.statistics", "latents.targets",
        "transforms.writing",
    )  # fmt: skip
    _OUTSIDE = {"np": "numpy", "npt": "numpy.typing", "pd": "pandas", "torch": "torch"}
    _INSIDE = _RENAMED | {path.rpartition(".")[2]: path for path in _ROOMS_AND_MODULES}
    _MODULES = _OUTSIDE | {name: f"monai_diffae.{path}" for name, path in _INSIDE.items()}
    globals().update({name: _Lazy(module) for name, module in _MODULES.items()})

__all__ = [
    "association", "bundles", "cached", "cohort_split", "cohorts", "counterfactual", "directions", "engines",
    "harmonization", "inferers", "latents", "listings", "loading", "metrics", "models", "networks",
    "np", "npt", "official", "page_data", "pages", "parsing", "paths", "pd", "pictures", "provenance",
    "representation", "scans", "sections", "sessions", "speeds", "statistics", "surveys", "tables", "targets", "torch",
    "transforms", "twins", "writing",
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
