from monai_diffae.diffusion.inversion import implicit_inversion as implicit_inversion
from monai_diffae.diffusion.inversion import refined_inversion as refined_inversion
from monai_diffae.diffusion.monai_schedulers import as_schedule as as_schedule
from monai_diffae.diffusion.schedule import CLEAN as CLEAN
from monai_diffae.diffusion.schedule import SPACINGS as SPACINGS
from monai_diffae.diffusion.schedule import DiffusionSchedule as DiffusionSchedule
from monai_diffae.diffusion.settings import DecoderName as DecoderName
from monai_diffae.diffusion.settings import DecodingSettings as DecodingSettings
from monai_diffae.diffusion.settings import InversionName as InversionName
from monai_diffae.diffusion.settings import SolverName as SolverName
from monai_diffae.diffusion.settings import SpacingName as SpacingName
from monai_diffae.diffusion.solvers import SOLVERS as SOLVERS
from monai_diffae.diffusion.solvers import Solver as Solver
from monai_diffae.diffusion.solvers import SolverFacts as SolverFacts
from monai_diffae.diffusion.solvers import adams as adams
from monai_diffae.diffusion.solvers import ddim as ddim
from monai_diffae.diffusion.solvers import dpmpp_2m as dpmpp_2m
from monai_diffae.diffusion.solvers import find_solver as find_solver
from monai_diffae.diffusion.solvers import heun as heun
from monai_diffae.diffusion.solvers import register_solver as register_solver
from monai_diffae.diffusion.solvers import scheduler as scheduler
from monai_diffae.diffusion.solvers import solver_facts as solver_facts
from monai_diffae.diffusion.solvers import unipc as unipc
from monai_diffae.diffusion.steps import Denoiser as Denoiser
from monai_diffae.diffusion.steps import Predictor as Predictor
from monai_diffae.diffusion.steps import StepCallback as StepCallback
from monai_diffae.diffusion.steps import integrate as integrate

MODULES: dict[str, str]
__all__: list[str]
