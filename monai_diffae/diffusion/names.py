"""Names that options and configuration keys can take. This module is light: importing it does not load torch.

Command lines and checks of configurations read their choices from here. A test holds each list equal to what the
package really offers, e.g. :data:`SolverName` to :data:`monai_diffae.diffusion.SOLVERS`.
"""

from __future__ import annotations

from typing import Literal

SolverName = Literal["adams", "ddim", "dpmpp_2m", "heun", "unipc"]
"""Solvers of the probability-flow ODE, see :mod:`monai_diffae.diffusion.solvers`."""

InversionName = Literal["implicit", "ddim"]
"""Ways from x0 to x_T, see :mod:`monai_diffae.diffusion.inversion`; ``ddim`` is the paper's."""

DecoderName = Literal["exact", "fast"]
"""Decoders of a bundle: its own, and the one with few network evaluations that ``distill`` trains."""

SpacingName = Literal["logsnr", "leading", "trailing", "linspace"]
"""How the levels of a short run are spaced, see :mod:`monai_diffae.diffusion.timesteps`; ``leading`` is the paper's."""
