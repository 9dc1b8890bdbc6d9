"""The diffusion mathematics: noise schedules, solvers and inversion. Tensors only.

Each name is imported when it is first used (PEP 562), so that settings and seeds can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, get_args

from monai_diffae.diffusion.settings import DecoderName, DecodingSettings, InversionName, SolverName, SpacingName

if TYPE_CHECKING:
    from monai_diffae.diffusion.inversion import implicit_inversion, refined_inversion
    from monai_diffae.diffusion.schedule import CLEAN, SPACINGS, DiffusionSchedule
    from monai_diffae.diffusion.solvers import SOLVERS, Solver, SolverFacts, find_solver, register_solver, solver_facts
    from monai_diffae.diffusion.steps import Denoiser, StepCallback, evaluate, integrate

__all__ = [
    "CLEAN",
    "SOLVERS",
    "SPACINGS",
    "DecoderName",
    "DecodingSettings",
    "Denoiser",
    "DiffusionSchedule",
    "InversionName",
    "Solver",
    "SolverFacts",
    "SolverName",
    "SpacingName",
    "StepCallback",
    "evaluate",
    "find_solver",
    "implicit_inversion",
    "integrate",
    "refined_inversion",
    "register_solver",
    "solver_facts",
    *get_args(SolverName),  # each solver is a function of its name
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("schedule", "steps", "solvers", "inversion"):
            content = vars(import_module(f"{__name__}.{module}"))
            if name in content:
                return content[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
