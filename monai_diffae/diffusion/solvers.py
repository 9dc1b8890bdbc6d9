"""Solvers of the probability-flow ODE, from x_T down to x0. One algorithm, one function, one signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from monai_diffae.diffusion.schedule import CLEAN, DiffusionSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, *S), t (B,)) -> the network's output (B, C, *S), in whatever parameterisation the schedule says."""

StepCallback = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all), for progress bars."""


def ddim(
    denoise: Denoiser,
    schedule: DiffusionSchedule,
    x_T: Tensor,
    timesteps: Sequence[int],
    *,
    clip_range: tuple[float, float] | None = None,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Decode x_T (B, C, *S) to x0 by DDIM (Song et al. 2021, equation 12); for rectified flow, Euler's method.

    One network evaluation a step, nothing kept but the current x_t.

    Args:
        denoise: the network, with its context bound.
        schedule: the noise schedule that the network was trained with.
        x_T: the stochastic code: at the level of the last timestep.
        timesteps: ascending, as :meth:`DiffusionSchedule.inference_timesteps` gives them.
        clip_range: clip x0 at every step, eps derived again; None: no clipping.
        eta: 0 deterministic, 1 as stochastic as DDPM.
        generator: for the noise of ``eta`` > 0.
        callback: called after each step.

    Example:
        >>> schedule = DiffusionSchedule(prediction="eps")
        >>> x_T = torch.randn(1, 1, 4, 4)
        >>> ddim(lambda x, t: torch.zeros_like(x), schedule, x_T, schedule.inference_timesteps(10)).shape
        torch.Size([1, 1, 4, 4])
    """
    x = x_T
    levels = [CLEAN, *timesteps]
    for done, i in enumerate(range(len(timesteps), 0, -1), start=1):
        t, t_next = levels[i], levels[i - 1]
        batch = torch.full((x.shape[0],), t, device=x.device)
        x0, eps = schedule.to_x0_eps(denoise(x, batch), x, batch, clip_range)
        x = schedule.ddim_move(x0, eps, t, t_next, eta if t_next != CLEAN else 0.0, generator)
        if callback is not None:
            callback(done, len(timesteps))
    return x
