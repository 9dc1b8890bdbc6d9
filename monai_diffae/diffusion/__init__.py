"""The diffusion mathematics: noise schedules, solvers and inversion. Tensors only.

Each name is imported when it is first used, so that settings and seeds can be imported without torch.
"""

from typing import get_args

from monai_diffae.diffusion.settings import SolverName
from monai_diffae.lazy import attach

MODULES = {
    **dict.fromkeys(("implicit_inversion", "refined_inversion"), "inversion"),
    "as_schedule": "monai_schedulers",
    **dict.fromkeys(("CLEAN", "SPACINGS", "DiffusionSchedule"), "schedule"),
    **dict.fromkeys(("DecoderName", "DecodingSettings", "InversionName", "SolverName", "SpacingName"), "settings"),
    **dict.fromkeys(("SOLVERS", "Solver", "SolverFacts", "find_solver", "register_solver", "solver_facts"), "solvers"),
    **dict.fromkeys(get_args(SolverName), "solvers"),  # each solver is a function of its name
    **dict.fromkeys(("Denoiser", "Predictor", "StepCallback", "integrate"), "steps"),
}

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
