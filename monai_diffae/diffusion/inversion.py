"""Inversion: from x0 up to the stochastic code x_T, from which the decoder recovers x0.

The paper's inversion is DDIM run upwards: :func:`~monai_diffae.diffusion.solvers.ddim` along ascending levels. Each of
its steps uses the network's prediction at the lower of two levels. Decoding uses the prediction at the upper one, so
the two do not undo each other.

:func:`implicit_inversion` evaluates the network at the upper level as well. It extrapolates x there from the levels
below, evaluates the network for this guess, and corrects the guess with the result. The guess is so good that one
evaluation per step is enough; with more evaluations the step becomes exact.

This can fail where z_sem leaves a choice open, say left or right hippocampus: a small error in x_T then becomes a
different image. :func:`refined_inversion` handles these images by solving the decoder's own steps one after another.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from monai_diffae.diffusion.steps import Evaluation, Predictor, StepCallback, integrate, interpolated_step
from monai_diffae.errors import ConfigError

MEMORY = 4
"""How many of the latest evaluations the next guess is computed from."""

_RELATIVE_ROUNDING = 1e-6  # singular values below this share of the largest one are rounding errors
GUESS_ORDER = 3
"""Number of levels from which the first guess of a step is extrapolated."""

SWEEPS = 3
"""Most passes over all levels in a refinement."""

STEP_EVALUATIONS = 10
"""Most network evaluations for one refined step; most steps need one to three."""

STEP_TOLERANCE = 1e-4
"""Tolerance of a refined step as a fraction of the tolerance of the image, because decoding amplifies its error."""


def fixed_point(step: Callable[[Tensor], Tensor], x: Tensor, *, tolerance: float, max_evaluations: int) -> Tensor:
    """Solve step(x) = x, starting from a guess. All elements of x are one common problem.

    Stops when the mean square of step(x) - x is at most ``tolerance``, and returns the last step(x).
    """
    mapped: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(max_evaluations):
        mapped = [*mapped[1 - MEMORY :], step(x)]
        residuals = [*residuals[1 - MEMORY :], mapped[-1] - x]
        if not tolerance < float(residuals[-1].square().mean()) < math.inf:
            break
        x = _accelerated(mapped, residuals)
    return mapped[-1]


def _accelerated(mapped: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """The next guess: the combination of earlier values for which the residual, if it were linear, is smallest."""
    if len(mapped) == 1:
        return mapped[0]
    changes = torch.stack([(residuals[-1] - earlier).flatten() for earlier in residuals[:-1]])
    # At most three unknowns: solved on the CPU, because not every device has float64.
    normal = (changes @ changes.T).cpu().double()
    right_side = (changes @ residuals[-1].flatten()).cpu().double()
    weights = torch.linalg.pinv(normal, rtol=_RELATIVE_ROUNDING, hermitian=True) @ right_side
    x = mapped[-1]
    for weight, earlier in zip(weights.tolist(), mapped[:-1], strict=True):
        x = x - weight * (mapped[-1] - earlier)
    return x


def implicit_inversion(
    predict: Predictor,
    x0: Tensor,
    levels: Sequence[int],
    *,
    num_evaluations: int | None = None,
    order: int = 3,
    callback: StepCallback | None = None,
) -> Tensor:
    """The stochastic code x_T (B, C, *S) of x0 (B, C, *S), by implicit steps, in memory that is constant in the steps.

    The steps are Adams-Moulton steps in log-SNR, whose first guess is an Adams-Bashforth step: the upward counterpart
    of :func:`~monai_diffae.diffusion.solvers.adams`. With ``order`` 1 they are implicit Euler steps, which converge to
    the exact inverse of DDIM steps.

    Args:
        predict: the network with its z_sem, its schedule and the range to clip to.
        x0: clean images in the model's range.
        levels: ascending levels that start with -1 (x0 itself). With other levels than the decoder's, inversion and
            decoding do not undo each other.
        num_evaluations: total number of network evaluations, at least one per step; None: one per step. Further
            evaluations are distributed evenly; the remainder goes to the cleanest levels, where the guess is poorest.
        order: order of the steps; see :attr:`~monai_diffae.diffusion.solvers.SolverFacts.inversion_order`.
        callback: called after each step.

    Raises:
        ConfigError: the levels do not rise.

    Example:
        >>> from monai_diffae.diffusion import DiffusionSchedule
        >>> schedule = DiffusionSchedule(prediction="eps")
        >>> x0 = torch.randn(1, 1, 4, 4)
        >>> predict = Predictor(lambda x, t: torch.zeros_like(x), schedule)
        >>> implicit_inversion(predict, x0, schedule.inversion_levels(10)).shape
        torch.Size([1, 1, 4, 4])
    """
    steps = len(levels) - 1
    num_evaluations = steps if num_evaluations is None else num_evaluations
    if any(t >= t_next for t, t_next in pairwise(levels)):
        raise ConfigError("implicit_inversion needs rising levels, from x0 up")
    schedule, parameterisation = predict.schedule, predict.schedule.natural_parameterisation
    below: list[Evaluation] = []  # at the levels reached so far, the nearest first
    counts = iter([num_evaluations // steps + (i < num_evaluations % steps) for i in range(steps)])

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal below
        if below:
            x_next = interpolated_step(schedule, x, t, t_next, below[:GUESS_ORDER], parameterisation)
        else:
            x_next = schedule.level(t_next)[0] * x
        for _ in range(next(counts)):
            evaluation = predict(x_next, t_next)
            x_next = interpolated_step(schedule, x, t, t_next, [evaluation, *below[: order - 1]], parameterisation)
        below = [evaluation, *below][: max(order - 1, GUESS_ORDER)]
        return x_next

    return integrate(x0, levels, step, callback)


def refined_inversion(
    predict: Predictor,
    decode: Callable[[Tensor], Tensor],
    x0: Tensor,
    levels: Sequence[int],
    *,
    tolerance: float,
    order: int = 3,
    max_evaluations: int | None = None,
    decode_evaluations: int = 0,
) -> tuple[Tensor, Tensor] | None:
    """x_T (1, C, *S) of one image for which :func:`implicit_inversion` was not exact enough, and its decoded x0.

    A step of :func:`~monai_diffae.diffusion.solvers.adams` from level t_k down to t_(k-1) uses the network's
    predictions at t_k and at the levels above. Seen from below, it is an equation for x at t_k once the predictions
    above are known. Here they are taken from the previous sweep over the levels, and each equation is solved by
    :func:`~monai_diffae.diffusion.inversion.fixed_point`. x is kept at all levels, and a sweep takes about 100
    evaluations.

    Args:
        predict: the network with the z_sem of x0, its schedule and the decoder's range to clip to.
        decode: maps x_T to x0, with the decoder's levels and order.
        x0: the image (1, C, *S).
        levels: the decoder's levels, ascending.
        tolerance: stop when the mean squared error of the decoded x0 is at most this, or after :data:`SWEEPS` sweeps.
        order: order of the decoder's steps: 3 for ``adams``, 1 for ``ddim``.
        max_evaluations: stop before more network evaluations than this are made, those of ``decode`` included; None:
            no such limit. With less than four evaluations per level, no sweep can be completed.
        decode_evaluations: network evaluations of one call of ``decode``.

    Returns:
        x_T of the sweep with the smallest error, and the x0 that it decodes to; None if ``max_evaluations`` does not
        allow a single sweep.
    """
    num_steps = len(levels) - 1
    remaining = math.inf if max_evaluations is None else max_evaluations - 2 * num_steps  # used before the first sweep
    if remaining < num_steps + decode_evaluations:
        return None
    path = [x0]  # x at each level
    implicit_inversion(predict, x0, levels, order=order, callback=lambda _, __, x: path.append(x))
    schedule, parameterisation = predict.schedule, predict.schedule.natural_parameterisation
    evaluations = [predict(x, t) for x, t in zip(path[1:], levels[1:], strict=True)]
    sweeps: list[tuple[float, Tensor, Tensor]] = []
    for _ in range(SWEEPS):
        for k, (t, t_next) in enumerate(pairwise(levels)):
            above = evaluations[k + 1 : k + order] if k > 0 else []  # the decoder's last step, to x0, is first order

            def step_up(
                x: Tensor, k: int = k, t: int = t, t_next: int = t_next, above: list[Evaluation] = above
            ) -> Tensor:
                nonlocal remaining
                remaining -= 1
                evaluations[k] = predict(x, t_next)
                return interpolated_step(schedule, path[k], t, t_next, [evaluations[k], *above], parameterisation)

            reserved = num_steps - 1 - k + decode_evaluations  # so that each sweep is completed and decoded
            path[k + 1] = fixed_point(
                step_up,
                path[k + 1],
                tolerance=STEP_TOLERANCE * tolerance,
                max_evaluations=int(min(STEP_EVALUATIONS, remaining - reserved)),
            )
        decoded = decode(path[-1])
        remaining -= decode_evaluations
        sweeps.append((float((decoded - x0).square().mean()), path[-1], decoded))
        if sweeps[-1][0] <= tolerance or remaining < num_steps + decode_evaluations:
            break
    _, x_T, decoded = min(sweeps, key=lambda sweep: sweep[0])
    return x_T, decoded
