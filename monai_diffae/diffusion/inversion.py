"""Inversion: from x0 up to the stochastic code x_T that the decoder turns back into x0.

The paper's inversion is DDIM run upwards, :func:`~monai_diffae.diffusion.solvers.ddim` along ascending levels: at each
step it takes what the network says at the level below. Decoding takes it at the level above, so the two do not undo
each other. Here the network is asked at the level above too: of a guess, extrapolated from the levels below, which the
answer then corrects. One evaluation a step suffices, since the guess is good; more of them make the step exact.

That is not enough where images part on the way down, say a left from a right hippocampus while z_sem leaves it open:
there a small difference in x_T becomes another image. :func:`refined_inversion` then solves the decoder's own steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from monai_diffae.diffusion.fixed_point import fixed_point
from monai_diffae.diffusion.multistep import Node, interpolated_step, natural_quantity
from monai_diffae.diffusion.schedule import DiffusionSchedule
from monai_diffae.diffusion.solvers import ClipRange, Denoiser, StepCallback, ask, walk
from monai_diffae.errors import ConfigError

GUESS_ORDER = 3
"""Levels that the first guess of a step is extrapolated from."""

SWEEPS = 3
"""Times that a refinement goes through all levels at most."""

STEP_EVALUATIONS = 10
"""Network evaluations that a refined step takes at most; most need one to three."""

STEP_TOLERANCE = 1e-4
"""How exact a refined step is, as a part of the tolerance: decoding multiplies what is left."""


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


def refined_inversion(
    denoise: Denoiser,
    decode: Callable[[Tensor], Tensor],
    schedule: DiffusionSchedule,
    x0: Tensor,
    levels: Sequence[int],
    *,
    tolerance: float,
    order: int = 3,
    clip_range: ClipRange = None,
) -> tuple[Tensor, Tensor]:
    """x_T (1, C, *S) of one x0 that :func:`implicit_inversion` does not bring back, and what it decodes to.

    A step of :func:`~monai_diffae.diffusion.solvers.adams` from t_k down to t_(k-1) goes by what the network says at
    t_k and at the levels above. Upwards that is an equation for x at t_k, given the levels above: here they are those
    of the sweep before, and each step is solved by :func:`~monai_diffae.diffusion.fixed_point.fixed_point`. It keeps
    all levels, and takes some 100 evaluations a sweep.

    Args:
        denoise: the network, with the context of x0 bound.
        decode: x_T to x0, with the decoder's levels and order.
        schedule: the noise schedule that the network was trained with.
        x0: the image (1, C, *S).
        levels: ascending, the decoder's.
        tolerance: mean squared error of the decoded x0 that ends the sweeps; :data:`SWEEPS` end them too.
        order: of the decoder: 3 for ``adams``, 1 for DDIM.
        clip_range: as for decoding.

    Returns:
        Of all sweeps the x_T that came closest, and the decoded x0.
    """
    path = [x0]
    implicit_inversion(
        denoise, schedule, x0, levels, order=order, clip_range=clip_range, callback=lambda _, __, x: path.append(x)
    )
    quantity = natural_quantity(schedule)
    nodes = [ask(denoise, schedule, x, t, clip_range) for x, t in zip(path[1:], levels[1:], strict=True)]
    found: list[tuple[float, Tensor, Tensor]] = []
    for _ in range(SWEEPS):
        for k, (t, t_next) in enumerate(pairwise(levels)):
            above = nodes[k + 1 : k + order] if k > 0 else []  # the decoder's step to x0 is first order

            def undone(x: Tensor, k: int = k, t: int = t, t_next: int = t_next, above: list[Node] = above) -> Tensor:
                nodes[k] = ask(denoise, schedule, x, t_next, clip_range)
                return interpolated_step(schedule, path[k], t, t_next, [nodes[k], *above], quantity)

            path[k + 1] = fixed_point(
                undone, path[k + 1], tolerance=STEP_TOLERANCE * tolerance, evaluations=STEP_EVALUATIONS
            )
        decoded = decode(path[-1])
        found.append((float((decoded - x0).square().mean()), path[-1], decoded))
        if found[-1][0] <= tolerance:
            break
    _, x_T, decoded = min(found, key=lambda sweep: sweep[0])
    return x_T, decoded
