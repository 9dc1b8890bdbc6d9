"""How images are inverted and decoded: the choices, as dataclass and names. Importing this does not load torch.

Command lines and checks of configurations read their choices from here. A test holds each list equal to what the
package really offers, e.g. :data:`SolverName` to :data:`monai_diffae.diffusion.SOLVERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from monai_diffae.errors import ConfigError, quoted
from monai_diffae.policies import check_choice

SolverName = Literal["adams", "ddim", "dpmpp_2m", "heun", "scheduler", "unipc"]
"""Solvers of the probability-flow ODE, see :mod:`monai_diffae.diffusion.solvers`."""

InversionName = Literal["implicit", "ddim"]
"""Ways from x0 to x_T, see :mod:`monai_diffae.diffusion.inversion`; ``ddim`` is the paper's."""

DecoderName = Literal["exact", "fast"]
"""Decoders of a bundle: its own, and the one with few network evaluations that ``distill`` trains."""

SpacingName = Literal["logsnr", "leading", "trailing", "linspace"]
"""How the levels of a short run are spaced, see :mod:`monai_diffae.diffusion.schedule`; ``leading`` is the paper's."""


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """How an inferer inverts and decodes; its keyword arguments.

    The defaults follow from the curves that ``benchmarks/solvers.py`` draws: 20 network evaluations for inversion and
    20 for decoding reproduce an image more exactly than the paper's 250 and 100.
    """

    #: a solver's name, or a function with the signature of :class:`~monai_diffae.diffusion.Solver`
    solver: SolverName | Callable[..., Any] = "adams"
    #: network evaluations for decoding. A solver that takes several evaluations per step makes as many steps as fit:
    #: Heun's method takes two per step but one for the last step, so it uses one less than an even number
    steps: int = 20
    #: network evaluations for inversion; None: as many as for decoding. If there are more, the levels are still the
    #: decoder's, and the cleanest of them get more than one evaluation. If there are fewer, the levels differ from the
    #: decoder's, which costs accuracy
    invert_steps: int | None = None
    #: ``implicit`` undoes the solver's steps; ``ddim`` is first order, and the paper's inversion if spacing is
    #: ``leading``
    inversion: InversionName = "implicit"
    #: an implicit inversion is refined if the mean squared error of the decoded image (with a first stage: latent) is
    #: above this; None: never
    invert_tolerance: float | None = 1e-3
    spacing: SpacingName | None = None  #: how the levels are spaced; None: as the schedule says
    clip: bool = True  #: clip x0 to the schedule's ``clip_range`` at every step
    batch_size: int = 64  #: largest number of images that are processed at once
    #: ``exact``: images are decoded as described above; ``fast``: by the fast decoder. Inversion is the same
    decoder: DecoderName = "exact"
    #: new noise in each step of the solver ``ddim``: 0 is DDIM, 1 as much as in DDPM. It follows from x_T: the
    #: same x_T gets the same noise, a slightly different one different noise. Inversion, which cannot undo it, is
    #: refused
    eta: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in {"inversion": InversionName, "decoder": DecoderName}.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("steps", "invert_steps", "batch_size"):
            count = getattr(self, name)
            if not (name == "invert_steps" and count is None) and (type(count) is not int or count < 1):
                _refuse(self, name, "it must be a whole number, at least 1")
        tolerance = self.invert_tolerance
        if tolerance is not None and not (type(tolerance) in (int, float) and tolerance > 0):
            _refuse(self, "invert_tolerance", "it must be a number above 0, or null")
        if type(self.eta) not in (int, float) or not 0 <= self.eta <= 1:
            _refuse(self, "eta", "it must be a number from 0 to 1")
        if self.eta > 0 and (self.solver, self.decoder) != ("ddim", "exact"):
            _refuse(self, "eta", "only the solver ddim draws new noise: choose it, with decoder exact, or omit eta")
        if type(self.clip) is not bool:
            _refuse(self, "clip", "it must be true or false")


def _refuse(settings: DecodingSettings, name: str, requirement: str) -> None:
    raise ConfigError(f"{name} is {quoted(getattr(settings, name))}; {requirement}")
