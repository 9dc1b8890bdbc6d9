"""The diffusion mathematics: noise schedules, solvers and inversion. Tensors only.

Each name is imported when it is first used (PEP 562), so that :mod:`monai_diffae.diffusion.names`, from which the
command line takes its help, can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, get_args

from monai_diffae.diffusion.names import SolverName

if TYPE_CHECKING:
    from monai_diffae.diffusion.integration import Denoiser as Denoiser
    from monai_diffae.diffusion.integration import StepCallback as StepCallback
    from monai_diffae.diffusion.integration import evaluate as evaluate
    from monai_diffae.diffusion.integration import integrate as integrate
    from monai_diffae.diffusion.inversion import implicit_inversion as implicit_inversion
    from monai_diffae.diffusion.inversion import refined_inversion as refined_inversion
    from monai_diffae.diffusion.names import DecoderName as DecoderName
    from monai_diffae.diffusion.names import InversionName as InversionName
    from monai_diffae.diffusion.names import SpacingName as SpacingName
    from monai_diffae.diffusion.registry import Solver as Solver
    from monai_diffae.diffusion.registry import SolverFacts as SolverFacts
    from monai_diffae.diffusion.registry import register_solver as register_solver
    from monai_diffae.diffusion.registry import solver_facts as solver_facts
    from monai_diffae.diffusion.schedule import CLEAN as CLEAN
    from monai_diffae.diffusion.schedule import DiffusionSchedule as DiffusionSchedule
    from monai_diffae.diffusion.solvers import SOLVERS as SOLVERS
    from monai_diffae.diffusion.solvers import find_solver as find_solver
    from monai_diffae.diffusion.timesteps import SPACINGS as SPACINGS

_MODULES = {
    "CLEAN": "schedule",
    "DecoderName": "names",
    "Denoiser": "integration",
    "DiffusionSchedule": "schedule",
    "InversionName": "names",
    "SOLVERS": "solvers",
    "SPACINGS": "timesteps",
    "Solver": "registry",
    "SolverFacts": "registry",
    "SolverName": "names",
    "SpacingName": "names",
    "StepCallback": "integration",
    "evaluate": "integration",
    "find_solver": "solvers",
    "implicit_inversion": "inversion",
    "integrate": "integration",
    "refined_inversion": "inversion",
    "register_solver": "registry",
    "solver_facts": "registry",
    **dict.fromkeys(get_args(SolverName), "solvers"),  # each solver is a function of its name
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
