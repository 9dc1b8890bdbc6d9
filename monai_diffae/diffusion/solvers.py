"""Solvers of the probability-flow ODE: one function per algorithm, all with the same signature.

A solver moves x along ``levels``: x is at the first level, and the result is at the last one. A level is a training
timestep, -1 (:data:`~monai_diffae.diffusion.CLEAN`) for x0 itself, or T for pure noise;
:meth:`DiffusionSchedule.decoding_levels` gives the levels from x_T down to x0. Solvers compute in float32 or better,
and keep only what their next step needs. A callback can read the intermediate x.

To add a solver, write its function here, declare its facts with ``register_solver``, and add its name to
:data:`~monai_diffae.diffusion.SolverName`. Inferers, configurations, the command line and the benchmarks then offer it,
and ``tests/diffusion/test_solvers.py`` checks what it declares. The one test to write compares it with its publication
or with another implementation.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from monai_diffae.diffusion.monai_schedulers import MonaiSchedule
from monai_diffae.diffusion.schedule import CLEAN, Parameterisation
from monai_diffae.diffusion.steps import Evaluation, Predictor, StepCallback, integrate, interpolated_step, unipc_step
from monai_diffae.errors import ConfigError, quoted
from monai_diffae.policies import check_choice


class Solver(Protocol):
    """The signature of a solver."""

    def __call__(
        self,
        predict: Predictor,
        x: Tensor,
        levels: Sequence[int],
        *,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Move x (B, C, *S) from the first of ``levels`` to the last one.

        Args:
            predict: the network with its z_sem, its schedule and the range to clip to.
            x: the images at the first level.
            levels: the levels to visit, in this order.
            callback: called after each step.
        """


@dataclass(frozen=True, kw_only=True)
class SolverFacts:
    """What inferers, benchmarks and tests must know about a solver.

    Example:
        >>> facts = SolverFacts(order=2, evaluations_per_step=2)
        >>> facts.steps(20), facts.evaluations(10)
        (10, 19)
    """

    order: int = 1  #: order of convergence; the error is proportional to steps ** -order
    #: network evaluations per step. The last step, to x0, takes one with every solver, because the network knows no
    #: level without noise
    evaluations_per_step: int = 1
    #: order of the :func:`~monai_diffae.diffusion.implicit_inversion` that undoes the solver: 1 for a first-order
    #: solver, otherwise 3
    inversion_order: int = 3
    runs_upwards: bool = False  #: whether the levels may also rise, from x0 to x_T

    def steps(self, evaluations: int) -> int:
        """How many steps to x0 can be made with this many network evaluations (at least 1)."""
        return (evaluations - 1) // self.evaluations_per_step + 1

    def evaluations(self, steps: int) -> int:
        """How many network evaluations this many steps to x0 take."""
        return self.evaluations_per_step * (steps - 1) + 1


SOLVERS: dict[str, Solver] = {}
"""All registered solvers by name. Import it from :mod:`monai_diffae.diffusion`, where it is filled."""

_S = TypeVar("_S", bound=Solver)


def register_solver(name: str, facts: SolverFacts) -> Callable[[_S], _S]:
    """Decorator that adds a solver to :data:`SOLVERS` and attaches its facts to it."""

    def register(solver: _S) -> _S:
        solver.facts = facts  # type: ignore[attr-defined]
        SOLVERS[name] = solver
        return solver

    return register


def solver_facts(solver: Solver) -> SolverFacts:
    """The facts that a solver declares; a function that declares none has the defaults of :class:`SolverFacts`.

    Example:
        >>> from monai_diffae.diffusion import heun
        >>> solver_facts(functools.partial(heun, callback=print)).evaluations_per_step
        2
    """
    function = solver.func if isinstance(solver, functools.partial) else solver
    facts: SolverFacts = getattr(function, "facts", SolverFacts())
    return facts


def _check_falling(name: str, levels: Sequence[int]) -> None:
    if any(t <= t_next for t, t_next in pairwise(levels)):
        raise ConfigError(f"{name} needs falling levels, from x_T down; to invert, use implicit_inversion or ddim")


@register_solver("ddim", SolverFacts(order=1, inversion_order=1, runs_upwards=True))
def ddim(
    predict: Predictor,
    x: Tensor,
    levels: Sequence[int],
    *,
    callback: StepCallback | None = None,
    eta: float = 0.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12), first order; with rectified flow it is Euler's method.

    Along ascending levels it is the paper's inversion (Preechakul et al. 2022, equation 8). Each step then uses the
    network's prediction at the lower level instead of the upper one, so the error of a round trip falls as 1 / steps.
    The arguments are those of :class:`~monai_diffae.diffusion.Solver`; ``eta`` 0 is deterministic, 1 as stochastic as
    DDPM, and only for decoding. New noise is from one ``generator``, or from one per image.
    """
    if eta > 0:
        _check_falling("ddim with eta", levels)

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        evaluation = predict(x, t)
        noise_share = eta if t_next != CLEAN else 0.0
        return predict.schedule.ddim_step(evaluation.x0, evaluation.eps, t, t_next, noise_share, generator)

    return integrate(x, levels, step, callback)


@register_solver("heun", SolverFacts(order=2, evaluations_per_step=2, runs_upwards=True))
def heun(
    predict: Predictor,
    x: Tensor,
    levels: Sequence[int],
    *,
    callback: StepCallback | None = None,
) -> Tensor:
    """Heun's method, second order, on the straight path x / (alpha + sigma); two network evaluations per step.

    For rectified flow it is the classical method, for other schedules that of Karras et al. 2022, algorithm 1, with
    another time variable. As there, the step to x0 is Euler's, because the network knows no level without noise. The
    arguments are those of :class:`~monai_diffae.diffusion.Solver`.
    """

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        start = predict(x, t)
        x_next = predict.schedule.ddim_step(start.x0, start.eps, t, t_next)
        if t_next == CLEAN:
            return x_next
        end = predict(x_next, t_next)
        mean = Evaluation(t, (start.x0 + end.x0) / 2, (start.eps + end.eps) / 2)
        return interpolated_step(predict.schedule, x, t, t_next, [mean], "velocity")

    return integrate(x, levels, step, callback)


@register_solver("adams", SolverFacts(order=3))
def adams(
    predict: Predictor,
    x: Tensor,
    levels: Sequence[int],
    *,
    callback: StepCallback | None = None,
    order: int = 3,
) -> Tensor:
    """Adams-Bashforth in log-SNR: each step extrapolates the network's predictions at the last ``order`` levels.

    It takes one evaluation per step; the step to x0 is first order. It extrapolates eps if the network predicts eps, as
    UniPC's predictor for noise prediction does (Zhao et al. 2023), else the velocity. ``docs/decoding.md`` compares it
    with the exact trajectory. The arguments are those of :class:`~monai_diffae.diffusion.Solver`, with falling levels;
    ``order`` 1 is DDIM.
    """
    _check_falling("adams", levels)
    schedule, parameterisation = predict.schedule, predict.schedule.natural_parameterisation
    latest: list[Evaluation] = []

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal latest
        latest = [predict(x, t), *latest[: order - 1]]
        return latest[0].x0 if t_next == CLEAN else interpolated_step(schedule, x, t, t_next, latest, parameterisation)

    return integrate(x, levels, step, callback)


@register_solver("dpmpp_2m", SolverFacts(order=2))
def dpmpp_2m(
    predict: Predictor,
    x: Tensor,
    levels: Sequence[int],
    *,
    callback: StepCallback | None = None,
) -> Tensor:
    """DPM-Solver++(2M), second order (Lu et al. 2022, algorithm 2); one evaluation per step, the last first order.

    With h the step in lambda = log(alpha / sigma) and h' the step before, a step is

        D = x0 + h / (2 h') (x0 - x0'),
        x_next = sigma_next / sigma x - alpha_next (exp(-h) - 1) D,

    where x0 and x0' are the network's predictions at this level and at the one before; in the first step, D is x0. The
    arguments are those of :class:`~monai_diffae.diffusion.Solver`.
    """
    _check_falling("dpmpp_2m", levels)
    schedule = predict.schedule
    before: Evaluation | None = None

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal before
        evaluation, previous = predict(x, t), before
        before = evaluation
        if t_next == CLEAN:
            return evaluation.x0
        (alpha, sigma), (alpha_next, sigma_next) = schedule.level(t), schedule.level(t_next)
        d = evaluation.x0
        if previous is not None and schedule.level(previous.t)[0] > 0:  # without signal, h' is infinite
            h = schedule.half_log_snr(t_next) - schedule.half_log_snr(t)
            h_before = schedule.half_log_snr(t) - schedule.half_log_snr(previous.t)
            d = d + h / (2 * h_before) * (evaluation.x0 - previous.x0)
        # -alpha_next (exp(-h) - 1), written so that h may be infinite
        weight = alpha_next - sigma_next * alpha / sigma
        return sigma_next / sigma * x + weight * d

    return integrate(x, levels, step, callback)


@register_solver("unipc", SolverFacts(order=3))
def unipc(
    predict: Predictor,
    x: Tensor,
    levels: Sequence[int],
    *,
    callback: StepCallback | None = None,
    order: int = 3,
    parameterisation: Parameterisation = "x0",
) -> Tensor:
    """UniPC (Zhao et al. 2023, algorithms 1 and 2, B2): a predictor and a corrector, with one evaluation per step.

    The network's prediction for the predicted x first corrects this x, and then serves as the start of the next step.
    In the last steps the order falls to 1, as in the authors' code. The arguments are those of
    :class:`~monai_diffae.diffusion.Solver`, with falling levels; the order of the corrector is ``order`` + 1, and
    ``parameterisation``, ``x0`` or ``eps``, is the quantity to interpolate.
    """
    _check_falling("unipc", levels)
    check_choice("parameterisation", parameterisation, ("x0", "eps"))
    latest: list[Evaluation] = []
    x_before, last_order, steps_left = x, 0, len(levels) - 1

    def step(x: Tensor, t: int, t_next: int) -> Tensor:
        nonlocal latest, x_before, last_order, steps_left
        evaluation = predict(x, t)
        if latest:
            x = unipc_step(predict.schedule, x_before, t, [*latest[:last_order], evaluation], parameterisation)
        latest = [evaluation, *latest[: order - 1]]
        last_order, x_before = min(order, len(latest), steps_left), x
        steps_left -= 1
        if t_next == CLEAN:
            return evaluation.x0
        return unipc_step(predict.schedule, x, t_next, latest[:last_order], parameterisation)

    return integrate(x, levels, step, callback)


@register_solver("scheduler", SolverFacts(order=1, inversion_order=1, runs_upwards=True))
def scheduler(
    predict: Predictor,
    x: Tensor,
    levels: Sequence[int],
    *,
    callback: StepCallback | None = None,
) -> Tensor:
    """The scheduler's own ``step``: of the MONAI scheduler that the schedule was made from, else :func:`ddim`.

    MONAI's schedulers choose the timesteps themselves, as many as ``levels`` has steps; PNDM adds some. The arguments
    are those of :class:`~monai_diffae.diffusion.Solver`.
    """
    if not isinstance(predict.schedule, MonaiSchedule):
        return ddim(predict, x, levels, callback=callback)
    is_clipped = predict.clip_range is not None
    return predict.schedule.own_steps(predict.denoise, x, len(levels) - 1, is_clipped, callback)


def find_solver(solver: str | Solver) -> Solver:
    """The solver of this name; a function is returned as it is.

    Raises:
        ConfigError: there is no solver of this name.

    Example:
        >>> find_solver("heun") is heun
        True
    """
    if callable(solver):
        return solver
    if not (isinstance(solver, str) and solver in SOLVERS):
        raise ConfigError(f"solver is {quoted(solver)}; choose one of: {', '.join(sorted(SOLVERS))}")
    return SOLVERS[solver]
