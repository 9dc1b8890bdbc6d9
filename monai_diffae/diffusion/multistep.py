"""Steps of high order: what the network said at several levels, interpolated in log-SNR and integrated exactly.

The probability-flow ODE is linear but for the network, whichever of x0, eps and velocity it is written in. Between two
levels, with s = sigma / (alpha + sigma),

    x / sigma           changes by the integral of x0        over alpha / sigma   (DPM-Solver++, Lu et al. 2022),
    x / alpha           changes by the integral of eps       over sigma / alpha   (DPM-Solver, UniPC's noise form),
    x / (alpha + sigma) changes by the integral of eps - x0  over s               (rectified flow, Liu et al. 2022).

The third holds for any schedule, as any path is a straight line once it is divided by alpha + sigma, and never divides
by 0. Only the quantity under the integral is approximated: by the polynomial in log-SNR through the levels where the
network was asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.diffusion.schedule import DiffusionSchedule

Quantity = Literal["x0", "eps", "velocity"]

# more points than the smooth integrand of a step needs to be exact to rounding
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)


@dataclass(frozen=True)
class Node:
    """What the network said at one level: (x0, eps), each (B, C, *S), which together make up the x_t it was shown."""

    t: int
    x0: Tensor
    eps: Tensor

    def quantity(self, name: Quantity) -> Tensor:
        """x0, eps or the velocity eps - x0 of the straight path."""
        if name == "velocity":
            return self.eps - self.x0
        return self.x0 if name == "x0" else self.eps


def natural_quantity(schedule: DiffusionSchedule) -> Quantity:
    """What to interpolate: eps where the network predicts it, else the velocity, which no level divides by 0."""
    return "eps" if schedule.prediction == "eps" else "velocity"


def interpolated_step(
    schedule: DiffusionSchedule, x: Tensor, t: int, t_next: int, nodes: Sequence[Node], quantity: Quantity
) -> Tensor:
    """Take x (B, C, *S) from level ``t`` to level ``t_next``; of order ``len(nodes)``.

    Args:
        schedule: says what the levels are.
        x: at level ``t``.
        t: a level; with several nodes a timestep, not x0 itself.
        t_next: the same, above or below.
        nodes: where the network was asked: before ``t`` and at ``t`` for an explicit step, also at ``t_next`` for a
            corrector. All at different levels.
        quantity: what is interpolated; the linear part of its equation is exact.
    """
    (alpha, sigma), (alpha_next, sigma_next) = schedule.level(t), schedule.level(t_next)
    scale, scale_next = {
        "x0": (sigma, sigma_next), "eps": (alpha, alpha_next), "velocity": (alpha + sigma, alpha_next + sigma_next),
    }[quantity]  # fmt: skip
    x_next = (scale_next / scale) * x
    for weight, node in zip(_weights(schedule, t, t_next, nodes, quantity), nodes, strict=True):
        x_next = x_next + float(scale_next * weight) * node.quantity(quantity)
    return x_next


def _weights(
    schedule: DiffusionSchedule, t: int, t_next: int, nodes: Sequence[Node], quantity: Quantity
) -> NDArray[np.float64]:
    """The integral of each node's Lagrange polynomial from t to t_next."""
    if len(nodes) == 1:  # needs no log-SNR, which x0 itself does not have
        return np.array([_clock(schedule, t_next, quantity) - _clock(schedule, t, quantity)])
    start, end = schedule.log_snr(t), schedule.log_snr(t_next)
    w = start + (end - start) * (_POINTS + 1) / 2
    # s and its slope at a log-SNR w: the inverse of DiffusionSchedule.log_snr
    odds = np.exp(w)
    s = (1 + schedule.log_snr_cap) / (1 + odds)
    slope = -s * odds / (1 + odds)
    # how fast the integral's variable, (1 - s) / s, s / (1 - s) or s, moves with s
    slope = slope * {"x0": -1 / s**2, "eps": 1 / (1 - s) ** 2, "velocity": np.ones_like(s)}[quantity]
    measure = _WEIGHTS * (end - start) / 2 * slope
    at = [schedule.log_snr(node.t) for node in nodes]
    return np.array([measure @ _lagrange(w, at, i) for i in range(len(at))])


def _clock(schedule: DiffusionSchedule, t: int, quantity: Quantity) -> float:
    """The integral's variable at one level."""
    alpha, sigma = schedule.level(t)
    if quantity == "x0":
        return alpha / sigma
    return sigma / alpha if quantity == "eps" else sigma / (alpha + sigma)


def _lagrange(w: NDArray[np.float64], at: Sequence[float], i: int) -> NDArray[np.float64]:
    """The polynomial that is 1 at ``at[i]`` and 0 at the others."""
    others = [point for j, point in enumerate(at) if j != i]
    return np.prod([(w - point) / (at[i] - point) for point in others], axis=0)


def exponential_step(
    schedule: DiffusionSchedule, x: Tensor, t_next: int, nodes: Sequence[Node], quantity: Quantity
) -> Tensor:
    """The same as published for UniPC (Zhao et al. 2023, equations 9 and 11, B2) and DPM-Solver++: x0 or eps only.

    It differs from :func:`interpolated_step` in that the polynomial is one in plain log-SNR, and that with two levels
    the slope counts by half, which is right to second order. Levels without signal, where log-SNR is infinite, are
    left out of it.

    Args:
        schedule: says what the levels are.
        x: at the level of ``nodes[0]``.
        t_next: another level.
        nodes: where the network was asked.
        quantity: ``x0``, or ``eps`` if there is signal at every level.
    """
    t = nodes[0].t
    x_next = interpolated_step(schedule, x, t, t_next, nodes[:1], quantity)
    h = _plain_log_snr(schedule, t_next) - _plain_log_snr(schedule, t)
    others = [node for node in nodes[1:] if math.isfinite(_plain_log_snr(schedule, node.t))]
    if not others or not math.isfinite(h):
        return x_next
    ratios = [(_plain_log_snr(schedule, node.t) - _plain_log_snr(schedule, t)) / h for node in others]
    alpha_next, sigma_next = schedule.level(t_next)
    # the integrals over the step of r^k under the exponential, r going from 0 to 1; by parts
    sign, scale = (1, alpha_next) if quantity == "x0" else (-1, sigma_next)
    integrals = [1 - math.exp(-sign * h)]
    for k in range(1, len(others) + 1):
        integrals.append(1 - k / (sign * h) * integrals[-1])
    if len(others) == 1:
        weights = np.array([integrals[0] / 2 / ratios[0]])
    else:
        powers = np.array([[ratio**k for k in range(1, len(others) + 1)] for ratio in ratios])
        weights = np.linalg.solve(powers.T, integrals[1:])
    for weight, node in zip(weights, others, strict=True):
        x_next = x_next + float(scale * weight) * (node.quantity(quantity) - nodes[0].quantity(quantity))
    return x_next


def _plain_log_snr(schedule: DiffusionSchedule, t: int) -> float:
    alpha, sigma = schedule.level(t)
    return -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)
