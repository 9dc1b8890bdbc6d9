"""The diffusion mathematics: schedule, solvers, inversion. Tensors only."""

from monai_diffae.diffusion.inversion import implicit_inversion, refined_inversion
from monai_diffae.diffusion.schedule import CLEAN, DiffusionSchedule
from monai_diffae.diffusion.solvers import SOLVERS, Denoiser, Solver, StepCallback, adams, ddim, dpmpp_2m, heun, unipc
from monai_diffae.diffusion.timesteps import SPACINGS, Spacing

__all__ = [
    "CLEAN",
    "SOLVERS",
    "SPACINGS",
    "Denoiser",
    "DiffusionSchedule",
    "Solver",
    "Spacing",
    "StepCallback",
    "adams",
    "ddim",
    "dpmpp_2m",
    "heun",
    "implicit_inversion",
    "refined_inversion",
    "unipc",
]
