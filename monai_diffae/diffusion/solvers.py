"""Solvers of the probability-flow ODE. One algorithm, one function, one signature.

A solver moves x along ``levels``, from the first, where x is, to the last. A level is a timestep of the training, -1
(``CLEAN``) for x0 itself or T for all noise; :meth:`DiffusionSchedule.decoding_levels` gives those from x_T down to x0.
Levels fall; ``ddim`` and ``heun`` also run upwards. Solvers compute in float32 at least. Nothing is kept but what the
next steps need; whoever wants what is on the way takes it from the callback.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from monai_diffae.diffusion.integration import ClipRange, Denoiser, StepCallback, evaluate, integrate
from monai_diffae.diffusion.multistep import (
    Evaluation,
    Parameterisation,
    exponential_step,
    interpolated_step,
    natural_parameterisation,
)
from monai_diffae.diffusion.schedule import CLEAN, DiffusionSchedule
from monai_diffae.errors import ConfigError


class Solver(Protocol):
    """What all solvers are called with."""

    def __call__(
        self,
        denoise: Denoiser,
        schedule: DiffusionSchedule,
        x: Tensor,
        levels: Sequence[int],
        *,
        clip_range: ClipRange = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Take x (B, C, *S) from the first of ``levels`` to the last.

        Args:
            denoise: the network, with its context bound.
            schedule: the noise schedule that the network was trained with.
            x: at the first level.
            levels: visited in this order.
            clip_range: clip x0 at every step, eps derived again; None: no clipping.
            callback: called after each step.
        """


def _check(name: str, levels: Sequence[int], order: int = 1) -> None:
    if any(t <= t_next for t, t_next in pairwise(levels)):
        raise ConfigError(f"{name} needs falling levels, from x_T down; to invert, use implicit_inversion or ddim")
    if order < 1:
        raise ConfigError(f"order is {order}; it must be at least 1")


def ddim(
    denoise: Denoiser,
    schedule: DiffusionSchedule,
    x: Tensor,
    levels: Sequence[int],
    *,
    clip_range: ClipRange = None,
    callback: StepCallback | None = None,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12), first order; for rectified flow this is Euler's method.

    Along ascending levels it is the paper's inversion (Preechakul et al. 2022, equation 8): each step takes what the
    network says at the level below, where the exact one would be implicit, so the error falls as 1/steps.

    Args:
        denoise: see :class:`Solver`, also for the others.
        schedule: the noise schedule.
        x: at the first level.
        levels: visited in this order.
        clip_range: clip x0 at every step.
        callback: called after each step.
        eta: 0 deterministic, 1 as stochastic as DDPM; for decoding only.
        generator: for the noise of ``eta`` > 0.

    Example:
        >>> schedule = DiffusionSchedule(prediction="eps")
        >>> x_T = torch.randn(1, 1, 4, 4)
        >>> ddim(lambda x, t: torch.zeros_like(x), schedule, x_T, schedule.decoding_levels(10)).shape
        torch.Size([1, 1, 4, 4])
    """
    if eta > 0:
        _check("ddim with eta", levels)

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        evaluation = evaluate(denoise, schedule, x, t, clip_range)
        return schedule.ddim_move(evaluation.x0, evaluation.eps, t, t_next, eta if t_next != CLEAN else 0.0, generator)

    return integrate(x, levels, step, callback)


def heun(
    denoise: Denoiser,
    schedule: DiffusionSchedule,
    x: Tensor,
    levels: Sequence[int],
    *,
    clip_range: ClipRange = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Heun's method, second order, on the straight path x / (alpha + sigma): two network evaluations a step.

    For rectified flow the classical one; for other schedules Karras et al. 2022, algorithm 1, in another clock. The
    step to x0 is Euler's, as there, because the network knows no level without noise.

    Example:
        >>> schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
        >>> heun(lambda x, t: torch.zeros_like(x), schedule, torch.ones(1, 1, 2, 2), schedule.decoding_levels(5)).mean()
        tensor(1.)
    """

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        here = evaluate(denoise, schedule, x, t, clip_range)
        x_next = schedule.ddim_move(here.x0, here.eps, t, t_next)
        if t_next == CLEAN:
            return x_next
        there = evaluate(denoise, schedule, x_next, t_next, clip_range)
        mean = Evaluation(t, (here.x0 + there.x0) / 2, (here.eps + there.eps) / 2)
        return interpolated_step(schedule, x, t, t_next, [mean], "velocity")

    return integrate(x, levels, step, callback)


def adams(
    denoise: Denoiser,
    schedule: DiffusionSchedule,
    x: Tensor,
    levels: Sequence[int],
    *,
    clip_range: ClipRange = None,
    callback: StepCallback | None = None,
    order: int = 3,
) -> Tensor:
    """Adams-Bashforth in log-SNR: each step goes on with what the network said at the last ``order`` levels.

    One evaluation a step. It interpolates eps where the network predicts that, as UniPC's predictor does in noise form
    (Zhao et al. 2023), else the velocity. The step to x0 is first order. For how close it comes to the exact trajectory
    see ``docs/decoding.md``.

    Args:
        denoise: see :class:`Solver`, also for the others.
        schedule: the noise schedule.
        x: x_T.
        levels: visited in this order.
        clip_range: clip x0 at every step.
        callback: called after each step.
        order: how many levels count; 1 is DDIM.

    Raises:
        ConfigError: levels that do not fall, or an order below 1.

    Example:
        >>> schedule = DiffusionSchedule(prediction="eps")
        >>> x_T = torch.randn(1, 1, 4, 4)
        >>> adams(lambda x, t: torch.zeros_like(x), schedule, x_T, schedule.decoding_levels(10)).shape
        torch.Size([1, 1, 4, 4])
    """
    _check("adams", levels, order)
    parameterisation = natural_parameterisation(schedule)
    evaluations: list[Evaluation] = []

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal evaluations
        evaluations = [evaluate(denoise, schedule, x, t, clip_range), *evaluations[: order - 1]]
        return (
            evaluations[0].x0
            if t_next == CLEAN
            else interpolated_step(schedule, x, t, t_next, evaluations, parameterisation)
        )

    return integrate(x, levels, step, callback)


def dpmpp_2m(
    denoise: Denoiser,
    schedule: DiffusionSchedule,
    x: Tensor,
    levels: Sequence[int],
    *,
    clip_range: ClipRange = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """DPM-Solver++(2M), second order (Lu et al. 2022, algorithm 2): one evaluation a step, the step to x0 first order.

    Example:
        >>> schedule = DiffusionSchedule(prediction="v")
        >>> x_T = torch.randn(1, 1, 4, 4)
        >>> dpmpp_2m(lambda x, t: torch.zeros_like(x), schedule, x_T, schedule.decoding_levels(10)).shape
        torch.Size([1, 1, 4, 4])
    """
    _check("dpmpp_2m", levels)
    evaluations: list[Evaluation] = []

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal evaluations
        evaluations = [evaluate(denoise, schedule, x, t, clip_range), *evaluations[:1]]
        return evaluations[0].x0 if t_next == CLEAN else exponential_step(schedule, x, t_next, evaluations, "x0")

    return integrate(x, levels, step, callback)


def unipc(
    denoise: Denoiser,
    schedule: DiffusionSchedule,
    x: Tensor,
    levels: Sequence[int],
    *,
    clip_range: ClipRange = None,
    callback: StepCallback | None = None,
    order: int = 3,
    parameterisation: Parameterisation = "x0",
) -> Tensor:
    """UniPC (Zhao et al. 2023, algorithms 1 and 2, B2): a predictor, and a corrector at no evaluation of its own.

    What the network says of the predicted x corrects this x before the next step starts from it. Towards the end the
    order falls to 1, as in the authors' code.

    Args:
        denoise: see :class:`Solver`, also for the others.
        schedule: the noise schedule.
        x: at the first level.
        levels: visited in this order.
        clip_range: clip x0 at every step.
        callback: called after each step.
        order: of the predictor; the corrector's is one higher.
        parameterisation: interpolate ``x0`` or ``eps``.

    Example:
        >>> schedule = DiffusionSchedule(prediction="v")
        >>> x_T = torch.randn(1, 1, 4, 4)
        >>> unipc(lambda x, t: torch.zeros_like(x), schedule, x_T, schedule.decoding_levels(10)).shape
        torch.Size([1, 1, 4, 4])
    """
    _check("unipc", levels, order)
    if parameterisation not in ("x0", "eps"):
        raise ConfigError(f"parameterisation is {parameterisation!r}; choose one of: x0, eps")
    evaluations: list[Evaluation] = []
    x_before, used, left = x, 0, len(levels) - 1

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal evaluations, x_before, used, left
        evaluation = evaluate(denoise, schedule, x, t, clip_range)
        if evaluations:
            x = exponential_step(schedule, x_before, t, [*evaluations[:used], evaluation], parameterisation)
        evaluations = [evaluation, *evaluations[: order - 1]]
        used, x_before = min(order, len(evaluations), left), x
        left -= 1
        return (
            evaluation.x0
            if t_next == CLEAN
            else exponential_step(schedule, x, t_next, evaluations[:used], parameterisation)
        )

    return integrate(x, levels, step, callback)


SOLVERS: dict[str, Solver] = {
    "adams": adams,
    "ddim": ddim,
    "euler": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "unipc": unipc,
}
