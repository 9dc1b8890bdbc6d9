"""Solvers of the probability-flow ODE. One algorithm, one function, one signature.

A solver moves x along ``levels``, from the first, where x is, to the last. A level is a timestep of the training, -1
(``CLEAN``) for x0 itself or T for all noise; :meth:`DiffusionSchedule.decoding_levels` gives those from x_T down to x0.
Levels fall; ``ddim`` and ``heun`` also run upwards. Solvers compute in float32 at least. Nothing is kept but what the
next steps need; whoever wants what is on the way takes it from the callback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from monai_diffae.diffusion.multistep import Node, Quantity, exponential_step, interpolated_step, natural_quantity
from monai_diffae.diffusion.schedule import CLEAN, DiffusionSchedule
from monai_diffae.errors import ConfigError

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, *S), t (B,)) -> the network's output (B, C, *S), in whatever parameterisation the schedule says."""

StepCallback = Callable[[int, int, Tensor], None]
"""Called after each step with (steps done, steps in all, x at the level reached), not to be changed in place."""

ClipRange = tuple[float, float] | None


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


def walk(
    x: Tensor, levels: Sequence[int], step: Callable[[Tensor, int, int], Tensor], callback: StepCallback | None
) -> Tensor:
    """Take x (B, C, *S) to the last level, by ``step(x, t, t_next)`` from each to the next; float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    for done, (t, t_next) in enumerate(pairwise(levels), start=1):
        x = step(x, t, t_next)
        if callback is not None:
            callback(done, len(levels) - 1, x)
    return x


def _check(name: str, levels: Sequence[int], order: int = 1) -> None:
    if any(t <= t_next for t, t_next in pairwise(levels)):
        raise ConfigError(f"{name} needs falling levels, from x_T down; to invert, use implicit_inversion or ddim")
    if order < 1:
        raise ConfigError(f"order is {order}; it must be at least 1")


def ask(denoise: Denoiser, schedule: DiffusionSchedule, x: Tensor, t: int, clip_range: ClipRange) -> Node:
    """The network's (x0, eps) for x at level ``t``; it takes x0 itself and all noise for the nearest level it knows."""
    known = min(max(t, 0), schedule.num_train_timesteps - 1)
    batch = torch.full((x.shape[0],), known, device=x.device)
    return Node(t, *schedule.to_x0_eps(denoise(x, batch), x, batch, clip_range))


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
        node = ask(denoise, schedule, x, t, clip_range)
        return schedule.ddim_move(node.x0, node.eps, t, t_next, eta if t_next != CLEAN else 0.0, generator)

    return walk(x, levels, step, callback)


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
        here = ask(denoise, schedule, x, t, clip_range)
        x_next = schedule.ddim_move(here.x0, here.eps, t, t_next)
        if t_next == CLEAN:
            return x_next
        there = ask(denoise, schedule, x_next, t_next, clip_range)
        mean = Node(t, (here.x0 + there.x0) / 2, (here.eps + there.eps) / 2)
        return interpolated_step(schedule, x, t, t_next, [mean], "velocity")

    return walk(x, levels, step, callback)


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
    quantity = natural_quantity(schedule)
    nodes: list[Node] = []

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal nodes
        nodes = [ask(denoise, schedule, x, t, clip_range), *nodes[: order - 1]]
        return nodes[0].x0 if t_next == CLEAN else interpolated_step(schedule, x, t, t_next, nodes, quantity)

    return walk(x, levels, step, callback)


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
    nodes: list[Node] = []

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal nodes
        nodes = [ask(denoise, schedule, x, t, clip_range), *nodes[:1]]
        return nodes[0].x0 if t_next == CLEAN else exponential_step(schedule, x, t_next, nodes, "x0")

    return walk(x, levels, step, callback)


def unipc(
    denoise: Denoiser,
    schedule: DiffusionSchedule,
    x: Tensor,
    levels: Sequence[int],
    *,
    clip_range: ClipRange = None,
    callback: StepCallback | None = None,
    order: int = 3,
    quantity: Quantity = "x0",
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
        quantity: interpolate ``x0`` or ``eps``.

    Example:
        >>> schedule = DiffusionSchedule(prediction="v")
        >>> x_T = torch.randn(1, 1, 4, 4)
        >>> unipc(lambda x, t: torch.zeros_like(x), schedule, x_T, schedule.decoding_levels(10)).shape
        torch.Size([1, 1, 4, 4])
    """
    _check("unipc", levels, order)
    if quantity not in ("x0", "eps"):
        raise ConfigError(f"quantity is {quantity!r}; choose one of: x0, eps")
    nodes: list[Node] = []
    x_before, used, left = x, 0, len(levels) - 1

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal nodes, x_before, used, left
        node = ask(denoise, schedule, x, t, clip_range)
        if nodes:
            x = exponential_step(schedule, x_before, t, [*nodes[:used], node], quantity)
        nodes = [node, *nodes[: order - 1]]
        used, x_before = min(order, len(nodes), left), x
        left -= 1
        return node.x0 if t_next == CLEAN else exponential_step(schedule, x, t_next, nodes[:used], quantity)

    return walk(x, levels, step, callback)


SOLVERS: dict[str, Solver] = {
    "adams": adams,
    "ddim": ddim,
    "euler": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "unipc": unipc,
}
