"""The random numbers of a training step, which do not depend on how many processes share its batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.diffusion.noise import seed_of

SCHEME = "step and place"  # how random numbers are drawn; checkpoints record it, as a change gives other weights


@dataclass(frozen=True)
class StepDraws:
    """Draws the random numbers of one process's images: a function of seed, step and their place in the global batch.

    The global batch consists of the images of all processes in a step. Every process draws for all of them and keeps
    its own rows: one call, which is much faster than one call per image. A CPU and a GPU draw different numbers.

    Attributes:
        seed: random seed of the training.
        step: number of the step, from 0.
        first: place of this process's first image in the global batch.
        count: number of its images.
        total: number of images in the global batch.

    Example:
        >>> alone, second = StepDraws(0, 7, first=0, count=4, total=4), StepDraws(0, 7, first=2, count=2, total=4)
        >>> bool((alone.noise((1, 8, 8), "cpu")[2:] == second.noise((1, 8, 8), "cpu")).all())
        True
    """

    seed: int
    step: int
    first: int
    count: int
    total: int

    def noise(self, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """Standard normal noise (count, *shape), float32."""
        generator = torch.Generator(device).manual_seed(seed_of(self.seed, self.step, "noise"))
        return self._own_rows(torch.randn((self.total, *shape), generator=generator, device=device))

    def timesteps(self, schedule: DiffusionSchedule) -> Tensor:
        """Timesteps (count,), on the CPU, sampled as the schedule's ``timestep_sampling`` says."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.step, "timesteps"))
        return self._own_rows(schedule.sample_timesteps(self.total, generator))

    def _own_rows(self, rows: Tensor) -> Tensor:
        return rows[self.first : self.first + self.count]
