"""What every solver and inversion is made of: one evaluation of the network, and the loop over noise levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from monai_diffae.diffusion.multistep import Evaluation
from monai_diffae.diffusion.schedule import DiffusionSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, *S), t (B,)) -> the network's output (B, C, *S), in the schedule's parameterisation (``prediction``)."""

StepCallback = Callable[[int, int, Tensor], None]
"""Called after each step with (steps done, total steps, x at the new level). It must not change x in place."""

ClipRange = tuple[float, float] | None
"""The least and the greatest value of x0; None: no clipping."""

KEPT_IMAGES = 10
"""Upper bound of the images (B, C, *S) that solvers and inversion hold while the network is evaluated, x_T and x0
included. Estimates of memory assume it, and a test holds all registered solvers to it."""


def evaluate(denoise: Denoiser, schedule: DiffusionSchedule, x: Tensor, t: int, clip_range: ClipRange) -> Evaluation:
    """Evaluate the network once, for x (B, C, *S) at level ``t``.

    The network was trained on the timesteps 0 to T - 1. For x0 itself (level -1) and for pure noise (level T) it is
    given the nearest of them.
    """
    trained_t = min(max(t, 0), schedule.num_train_timesteps - 1)
    batch = torch.full((x.shape[0],), trained_t, device=x.device)
    return Evaluation(t, *schedule.to_x0_eps(denoise(x, batch), x, batch, clip_range))


def integrate(
    x: Tensor, levels: Sequence[int], step: Callable[[Tensor, int, int], Tensor], callback: StepCallback | None
) -> Tensor:
    """Apply ``step(x, t, t_next)`` between each two consecutive levels, to x (B, C, *S) in float32 or better.

    Example:
        >>> integrate(torch.ones(1), [4, 2, -1], lambda x, t, t_next: x + t - t_next, None)
        tensor([6.])
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    for done, (t, t_next) in enumerate(pairwise(levels), start=1):
        x = step(x, t, t_next)
        if callback is not None:
            callback(done, len(levels) - 1, x)
    return x
