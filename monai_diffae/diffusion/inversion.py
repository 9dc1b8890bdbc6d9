"""Inversion: from x0 up to the stochastic code x_T that the decoder turns back into x0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffae.diffusion.schedule import CLEAN, DiffusionSchedule
from monai_diffae.diffusion.solvers import Denoiser, StepCallback


def ddim_invert(
    denoise: Denoiser,
    schedule: DiffusionSchedule,
    x0: Tensor,
    timesteps: Sequence[int],
    *,
    clip_range: tuple[float, float] | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """The stochastic code x_T (B, C, *S) of x0 by first-order DDIM run backwards (Preechakul et al. 2022, equation 8).

    It visits the levels of :func:`~monai_diffae.diffusion.solvers.ddim` in the opposite order, from x0 to the last
    timestep, one network evaluation a step, nothing kept but the current x_t. Each step takes the network's
    prediction from the level below (the exact one would be implicit), so the error falls as 1/steps.

    Args:
        denoise: the network, with its context bound.
        schedule: the noise schedule that the network was trained with.
        x0: clean images in the model's range.
        timesteps: ascending, the same as for decoding.
        clip_range: clip x0 at every step, eps derived again; None: no clipping.
        callback: called after each step.

    Example:
        >>> schedule = DiffusionSchedule(prediction="eps")
        >>> x0 = torch.randn(1, 1, 4, 4)
        >>> ddim_invert(lambda x, t: torch.zeros_like(x), schedule, x0, schedule.inference_timesteps(10)).shape
        torch.Size([1, 1, 4, 4])
    """
    x = x0
    levels = [CLEAN, *timesteps]
    for i in range(len(timesteps)):
        # x0 itself has no timestep; the network's lowest level is the nearest thing it knows.
        t = max(levels[i], 0)
        batch = torch.full((x.shape[0],), t, device=x.device)
        x0_hat, eps = schedule.to_x0_eps(denoise(x, batch), x, batch, clip_range)
        x = schedule.ddim_move(x0_hat, eps, t, levels[i + 1])
        if callback is not None:
            callback(i + 1, len(timesteps))
    return x
