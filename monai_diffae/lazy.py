"""Modules that are imported when they are first used, so that ``--help`` loads neither torch nor pandas.

A command imports what it needs from here, as ``from monai_diffae.lazy import np, torch``; a type checker sees the real
modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


class _Lazy:
    """Stands for a module: each attribute is that of the module, which is imported for the first one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


_RENAMED = {
    "bundles": "bundle", "case_sequences": "data.sequences", "listings": "data.inspection.listing",
    "models": "bundle.model",
    "page_data": "apps.pages.data", "pages": "apps.pages.page", "parsing": "bundle.parser",
    "sessions": "apps.session", "speeds": "apps.training.speed", "surveys": "data.inspection.survey",
    "tables": "data.embeddings",
}  # fmt: skip
_ROOMS_AND_MODULES = (
    "engines", "inferers", "latents", "metrics", "networks", "official", "pictures", "transforms",
    "apps.evaluation.baselines", "apps.evaluation.quality", "apps.pages.sections", "apps.provenance",
    "bundle.loading", "data.cached", "data.cohort_split", "data.cohorts", "data.formats.dicom", "data.inspection.twins",
    "data.masks", "data.samples", "data.scans", "data.streamed", "data.tensor_files",
    "inferers.counterfactual", "inferers.paths", "latents.association", "latents.directions",
    "latents.harmonization", "latents.representation", "latents.statistics", "latents.targets",
    "networks.network_parts", "serving.server", "transforms.writing",
)  # fmt: skip
_INSIDE = _RENAMED | {path.rpartition(".")[2]: path for path in _ROOMS_AND_MODULES}
_OUTSIDE = {
    "np": "numpy", "npt": "numpy.typing", "pd": "pandas", "pa": "pyarrow", "pq": "pyarrow.parquet",
    "pydantic": "pydantic", "torch": "torch",
}  # fmt: skip
MODULES = _OUTSIDE | {name: f"monai_diffae.{path}" for name, path in _INSIDE.items()}
"""The modules by their names here; ``make configs`` writes them to ``lazy.pyi`` for type checkers."""

globals().update({name: _Lazy(module) for name, module in MODULES.items()})


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
