"""The diffusion mathematics: noise schedules, solvers and inversion. Tensors only.

Each name is imported when it is first used (PEP 562), so that :mod:`monai_diffae.diffusion.names`, from which the
command line takes its help, can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_diffae.diffusion.integration import Denoiser, StepCallback
    from monai_diffae.diffusion.inversion import implicit_inversion, refined_inversion
    from monai_diffae.diffusion.names import InversionName, SolverName, SpacingName
    from monai_diffae.diffusion.schedule import CLEAN, DiffusionSchedule
    from monai_diffae.diffusion.solvers import (
        SOLVERS,
        Solver,
        adams,
        ddim,
        dpmpp_2m,
        heun,
        unipc,
    )
    from monai_diffae.diffusion.timesteps import SPACINGS

__all__ = [
    "CLEAN",
    "SOLVERS",
    "SPACINGS",
    "Denoiser",
    "DiffusionSchedule",
    "InversionName",
    "Solver",
    "SolverName",
    "SpacingName",
    "StepCallback",
    "adams",
    "ddim",
    "dpmpp_2m",
    "heun",
    "implicit_inversion",
    "refined_inversion",
    "unipc",
]

_CONTENTS = {
    "integration": ("Denoiser", "StepCallback"),
    "inversion": ("implicit_inversion", "refined_inversion"),
    "names": ("InversionName", "SolverName", "SpacingName"),
    "schedule": ("CLEAN", "DiffusionSchedule"),
    "solvers": ("SOLVERS", "Solver", "adams", "ddim", "dpmpp_2m", "heun", "unipc"),
    "timesteps": ("SPACINGS",),
}

if not TYPE_CHECKING:  # type checkers read the imports above, and still report names that do not exist

    def __getattr__(name: str) -> object:
        for module, names in _CONTENTS.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
