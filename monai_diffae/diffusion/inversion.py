"""Inversion: from x0 up to the stochastic code x_T that the decoder turns back into x0.

The paper's inversion is DDIM run upwards, :func:`~monai_diffae.diffusion.solvers.ddim` along ascending levels: at each
step it takes what the network says at the level below. Decoding takes it at the level above, so the two do not undo
each other. Here the network is asked at the level above too: of a guess, extrapolated from the levels below, which the
answer then corrects. One evaluation a step suffices, since the guess is good; more of them make the step exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from monai_diffae.diffusion.multistep import Node, interpolated_step, natural_quantity
from monai_diffae.diffusion.schedule import DiffusionSchedule
from monai_diffae.diffusion.solvers import ClipRange, Denoiser, StepCallback, ask, walk
from monai_diffae.errors import ConfigError

GUESS_ORDER = 3
"""Levels that the first guess of a step is extrapolated from."""


def implicit_inversion(
    denoise: Denoiser,
    schedule: DiffusionSchedule,
    x0: Tensor,
    levels: Sequence[int],
    *,
    evaluations: int | None = None,
    order: int = 3,
    clip_range: ClipRange = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """The stochastic code x_T (B, C, *S) of x0 (B, C, *S) by implicit steps, in constant memory.

    Each is a fixed point: Adams-Moulton in log-SNR, started from Adams-Bashforth, the upward twin of
    :func:`~monai_diffae.diffusion.solvers.adams`. With ``order`` 1 it is the implicit Euler step, whose fixed point
    is the exact inverse of a DDIM step.

    Args:
        denoise: the network, with its context bound.
        schedule: the noise schedule that the network was trained with.
        x0: clean images in the model's range.
        levels: ascending, -1 (x0 itself) first: those of the decoder, or the two do not undo each other.
        evaluations: network evaluations in all, at least one a step; None: just that. More of them are spent evenly,
            what remains at the cleanest levels, where the guess is poorest.
        order: of the steps: 3 for a decoder of high order, 1 for DDIM.
        clip_range: clip x0 at every step, eps derived again; None: no clipping.
        callback: called after each step.

    Raises:
        ConfigError: fewer evaluations than steps, levels that do not rise, or an order below 1.

    Example:
        >>> import torch
        >>> schedule = DiffusionSchedule(prediction="eps")
        >>> x0 = torch.randn(1, 1, 4, 4)
        >>> implicit_inversion(lambda x, t: torch.zeros_like(x), schedule, x0, schedule.inversion_levels(10)).shape
        torch.Size([1, 1, 4, 4])
    """
    steps = len(levels) - 1
    evaluations = steps if evaluations is None else evaluations
    if evaluations < steps:
        raise ConfigError(f"evaluations is {evaluations}; give at least {steps}, one for each step")
    if order < 1 or any(t >= t_next for t, t_next in pairwise(levels)):
        raise ConfigError(
            f"implicit_inversion needs rising levels, from x0 up, and an order of at least 1, not {order}"
        )
    quantity = natural_quantity(schedule)
    nodes: list[Node] = []
    left = [evaluations // steps + (i < evaluations % steps) for i in range(steps)]

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal nodes
        if nodes:
            guess = interpolated_step(schedule, x, t, t_next, nodes[:GUESS_ORDER], quantity)
        else:
            guess = schedule.level(t_next)[0] * x
        for _ in range(left.pop(0)):
            node = ask(denoise, schedule, guess, t_next, clip_range)
            guess = interpolated_step(schedule, x, t, t_next, [node, *nodes[: order - 1]], quantity)
        nodes = [node, *nodes][: max(order - 1, GUESS_ORDER)]
        return guess

    return walk(x0, levels, step, callback)
