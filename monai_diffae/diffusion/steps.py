"""Steps of high order between two noise levels, from evaluations of the network at several levels.

The probability-flow ODE has a linear part, which is solved exactly, and a part that depends on the network. With
s = sigma / (alpha + sigma), it can be written in three parameterisations. Between two levels,

    x / sigma           changes by the integral of x0        over alpha / sigma   (DPM-Solver++, Lu et al. 2022),
    x / alpha           changes by the integral of eps       over sigma / alpha   (DPM-Solver; UniPC, noise prediction),
    x / (alpha + sigma) changes by the integral of eps - x0  over s               (rectified flow, Liu et al. 2022).

The third one can be used with any schedule: the path alpha x0 + sigma eps becomes a straight line when it is divided by
alpha + sigma, which is never zero.

The only approximation is that of the quantity under the integral. It is replaced by a polynomial in log-SNR that agrees
with the network at the levels where the network was evaluated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.diffusion.schedule import DiffusionSchedule, Parameterisation

# With 32 points the quadrature of a step, whose integrand is smooth, is exact to rounding.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)
Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, *S), t (B,)) -> the network's output (B, C, *S), in the schedule's parameterisation (``prediction``)."""

StepCallback = Callable[[int, int, Tensor], None]
"""Called after each step with (steps done, total steps, x at the new level). It must not change x in place."""

ClipRange = tuple[float, float] | None
"""The least and the greatest value of x0; None: no clipping."""

KEPT_IMAGES = 10
"""Upper bound of the images (B, C, *S) that solvers and inversion hold while the network is evaluated, x_T and x0
included. Estimates of memory assume it, and a test holds all registered solvers to it."""


@dataclass(frozen=True)
class Evaluation:
    """The network's prediction at level ``t``: x0 and eps, each (B, C, *S), with x_t = alpha_t x0 + sigma_t eps."""

    t: int
    x0: Tensor
    eps: Tensor

    def value(self, parameterisation: Parameterisation) -> Tensor:
        """x0, eps, or the velocity eps - x0 of the straight path; (B, C, *S)."""
        if parameterisation == "velocity":
            return self.eps - self.x0
        return self.x0 if parameterisation == "x0" else self.eps


def interpolated_step(
    schedule: DiffusionSchedule,
    x: Tensor,
    t: int,
    t_next: int,
    evaluations: Sequence[Evaluation],
    parameterisation: Parameterisation,
) -> Tensor:
    """One step of x (B, C, *S) from level ``t`` to level ``t_next``, of order ``len(evaluations)``.

    With several evaluations, ``t`` must be a timestep, not x0 itself. Each is at another level: for an explicit step,
    at ``t`` and at levels before it; for an implicit step or a corrector, also at ``t_next``. The polynomial
    interpolates the quantity ``parameterisation``.
    """
    (alpha, sigma), (alpha_next, sigma_next) = schedule.level(t), schedule.level(t_next)
    scale, scale_next = {
        "x0": (sigma, sigma_next),
        "eps": (alpha, alpha_next),
        "velocity": (alpha + sigma, alpha_next + sigma_next),
    }[parameterisation]
    x_next = (scale_next / scale) * x
    weights = _weights(schedule, t, t_next, [evaluation.t for evaluation in evaluations], parameterisation)
    for weight, evaluation in zip(weights, evaluations, strict=True):
        x_next = x_next + float(scale_next * weight) * evaluation.value(parameterisation)
    return x_next


def _weights(
    schedule: DiffusionSchedule, t: int, t_next: int, levels: Sequence[int], parameterisation: Parameterisation
) -> NDArray[np.float64]:
    """One weight per level: the integral of its Lagrange polynomial from t to t_next."""
    if len(levels) == 1:  # a constant polynomial needs no log-SNR, which is infinite at x0 itself
        start, end = (_integration_variable(schedule, level, parameterisation) for level in (t, t_next))
        return np.array([end - start])
    start, end = schedule.log_snr(t), schedule.log_snr(t_next)
    log_snr = start + (end - start) * (_POINTS + 1) / 2
    # s, and its derivative by log-SNR: the inverse of DiffusionSchedule.log_snr
    odds = np.exp(log_snr)
    s = (1 + schedule.log_snr_cap) / (1 + odds)
    slope = -s * odds / (1 + odds)
    # the derivative of the integration variable, which is (1 - s) / s, s / (1 - s) or s
    slope = slope * {"x0": -1 / s**2, "eps": 1 / (1 - s) ** 2, "velocity": np.ones_like(s)}[parameterisation]
    measure = _WEIGHTS * (end - start) / 2 * slope
    nodes = [schedule.log_snr(level) for level in levels]
    return np.array([measure @ _lagrange(log_snr, nodes, i) for i in range(len(nodes))])


def _integration_variable(schedule: DiffusionSchedule, t: int, parameterisation: Parameterisation) -> float:
    """One level's alpha / sigma, sigma / alpha or s."""
    alpha, sigma = schedule.level(t)
    if parameterisation == "x0":
        return alpha / sigma
    return sigma / alpha if parameterisation == "eps" else sigma / (alpha + sigma)


def _lagrange(points: NDArray[np.float64], nodes: Sequence[float], i: int) -> NDArray[np.float64]:
    """The polynomial that is 1 at ``nodes[i]`` and 0 at the other nodes, at ``points``."""
    others = [node for j, node in enumerate(nodes) if j != i]
    return np.prod([(points - node) / (nodes[i] - node) for node in others], axis=0)


def unipc_step(
    schedule: DiffusionSchedule,
    x: Tensor,
    t_next: int,
    evaluations: Sequence[Evaluation],
    parameterisation: Parameterisation,
) -> Tensor:
    """One step as published for UniPC (Zhao et al. 2023, equations 9 and 11, B2), for x0 or eps.

    It differs from :func:`interpolated_step` in two ways: log-SNR has no cap, and with two evaluations the slope has
    the weight one half instead of its exact integral, which keeps the second order. Levels without signal, where
    log-SNR is infinite, are not used for the polynomial. x (B, C, *S) is at the level of ``evaluations[0]``; for a
    corrector, another evaluation is at ``t_next``. ``eps`` needs signal at every level.
    """
    t = evaluations[0].t
    x_next = interpolated_step(schedule, x, t, t_next, evaluations[:1], parameterisation)
    h = schedule.half_log_snr(t_next) - schedule.half_log_snr(t)
    others = [evaluation for evaluation in evaluations[1:] if math.isfinite(schedule.half_log_snr(evaluation.t))]
    if not others or not math.isfinite(h):
        return x_next
    ratios = [(schedule.half_log_snr(evaluation.t) - schedule.half_log_snr(t)) / h for evaluation in others]
    alpha_next, sigma_next = schedule.level(t_next)
    # The integrals of r^k times the exponential over the step, where r goes from 0 to 1; by parts.
    sign, scale = (1, alpha_next) if parameterisation == "x0" else (-1, sigma_next)
    integrals = [1 - math.exp(-sign * h)]
    for k in range(1, len(others) + 1):
        integrals.append(1 - k / (sign * h) * integrals[-1])
    if len(others) == 1:
        weights = np.array([integrals[0] / 2 / ratios[0]])
    else:
        powers = np.array([[ratio**k for k in range(1, len(others) + 1)] for ratio in ratios])
        weights = np.linalg.solve(powers.T, integrals[1:])
    first = evaluations[0].value(parameterisation)
    for weight, evaluation in zip(weights, others, strict=True):
        x_next = x_next + float(scale * weight) * (evaluation.value(parameterisation) - first)
    return x_next


@dataclass(frozen=True)
class Predictor:
    """What the network predicts at any level, with z_sem bound.

    Example:
        >>> predict = Predictor(lambda x, t: torch.zeros_like(x), DiffusionSchedule(prediction="eps"))
        >>> predict(torch.ones(1, 1, 4, 4), 500).eps.abs().max()
        tensor(0.)
    """

    denoise: Denoiser  #: the network, with its z_sem bound
    schedule: DiffusionSchedule  #: the noise schedule that the network was trained with
    clip_range: ClipRange = None  #: x0 is clipped to this range at every level, and eps recomputed; None: no clipping

    def __call__(self, x: Tensor, t: int) -> Evaluation:
        """Evaluate the network once, for x (B, C, *S) at level ``t``.

        The network was trained on the timesteps 0 to T - 1. For x0 itself (level -1) and for pure noise (level T) it is
        given the nearest of them.
        """
        trained_t = min(max(t, 0), self.schedule.num_train_timesteps - 1)
        batch = torch.full((x.shape[0],), trained_t, device=x.device)
        return Evaluation(t, *self.schedule.to_x0_eps(self.denoise(x, batch), x, batch, self.clip_range))


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
