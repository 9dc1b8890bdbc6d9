"""The diffusion mathematics: schedule, solvers, inversion. Tensors only."""

from monai_diffae.diffusion.inversion import ddim_invert
from monai_diffae.diffusion.schedule import CLEAN, DiffusionSchedule
from monai_diffae.diffusion.solvers import ddim

__all__ = ["CLEAN", "DiffusionSchedule", "ddim", "ddim_invert"]
