"""Random seeds as a function of (seed, rank, step): a resumed run draws the same numbers as an uninterrupted one."""

from __future__ import annotations

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_diffae.diffusion.noise import seed_of


class StepSeeding:
    """Ignite handler: before each iteration, seed torch and numpy with (seed, rank, iteration).

    Dropout, and whatever else draws from these generators, is then the same in a resumed run as in an uninterrupted
    one. Noise and timesteps have numbers of their own: :class:`~monai_diffae.engines.StepDraws`.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch (CPU and GPU) and numpy for the iteration that begins."""
        seed = seed_of(self.seed, self.rank, engine.state.iteration)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - MONAI and its users draw from the global generator
