"""Steps of one solver or of all: what solvers declare is true, on Gaussian data, where all is known in closed form.

A new solver runs through all of this by being registered. What is special to one solver follows at the end.
"""

from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from gaussian import KINDS, STD, curved, exact, noise

from monai_diffae import diffusion
from monai_diffae.diffusion import SOLVERS, DiffusionSchedule, solver_facts
from monai_diffae.diffusion.settings import SolverName, SpacingName
from monai_diffae.diffusion.solvers import adams, ddim
from monai_diffae.diffusion.steps import Evaluation, Predictor, interpolated_step

UPWARDS = [name for name in SOLVERS if solver_facts(SOLVERS[name]).runs_upwards]
RUNS = {**SOLVERS, "implicit_inversion": diffusion.implicit_inversion}
"""Everything that moves x along levels."""
PER_SOLVER = [*(("rectified_flow", "v", name) for name in SOLVERS), *(("linear_beta", "eps", name) for name in SOLVERS)]
OTHER_KINDS = [("linear_beta", "x0", "unipc"), ("cosine", "v", "dpmpp_2m"), ("rectified_flow", "x0", "heun")]
"""The other schedules and predictions, each with one solver: all of them see the network through x0 and eps."""
STEPS = {"unipc": (5, 40)}
"""Numbers of steps between which the order of convergence shows; (20, 80) for other solvers. UniPC lowers its order in
the last steps, and with 80 steps its error is that of the rounding of levels to whole timesteps."""


def levels_for(run, schedule, steps):
    return schedule.inversion_levels(steps) if run == "implicit_inversion" else schedule.decoding_levels(steps)


def along_the_ode(schedule, x_t, t, t_next):
    """Where the probability-flow ODE takes x_t: it only scales Gaussian data."""
    (alpha, sigma), (alpha_next, sigma_next) = schedule.level(t), schedule.level(t_next)
    return x_t * ((alpha_next**2 * STD**2 + sigma_next**2) / (alpha**2 * STD**2 + sigma**2)) ** 0.5


def decoding_error(solver, schedule, levels):
    """The distance of a decoding to the ODE at the last of these levels."""
    x_T = noise(2, 1, 4, 4)
    x = SOLVERS[solver](Predictor(exact(schedule), schedule), x_T, levels)
    return float((x - along_the_ode(schedule, x_T, levels[0], levels[-1])).abs().mean())


@pytest.mark.parametrize(("name", "prediction", "solver"), PER_SOLVER + OTHER_KINDS)
def test_solvers_converge_to_the_ode_at_the_order_that_they_declare(solver, name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    few, many = STEPS.get(solver, (20, 80))
    levels = schedule.decoding_levels(many + 1)[:-1]
    errors = [decoding_error(solver, schedule, levels[:: many // steps]) for steps in (few, many)]
    assert errors[1] < errors[0] / (0.6 * (many / few) ** solver_facts(SOLVERS[solver]).order)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_take_as_many_evaluations_as_they_declare(solver):
    schedule, facts = DiffusionSchedule(), solver_facts(SOLVERS[solver])
    for steps in (1, 2, 5):
        evaluated = []

        def denoise(x, t, evaluated=evaluated):
            evaluated.append(int(t[0]))
            return exact(schedule)(x, t)

        levels = schedule.decoding_levels(steps)
        SOLVERS[solver](Predictor(denoise, schedule), torch.randn(1, 1, 4, 4), levels)
        assert len(evaluated) == facts.evaluations(steps)
        if facts.evaluations_per_step == 1:
            assert evaluated == levels[:-1]
        elif solver == "heun":  # each level twice but the first
            assert evaluated == [levels[0], *[t for t in levels[1:-1] for _ in range(2)]]


@pytest.mark.parametrize(("name", "prediction", "solver"), PER_SOLVER)
def test_the_inversion_of_the_declared_order_undoes_a_solver(solver, name, prediction):
    schedule, declared = DiffusionSchedule(schedule=name, prediction=prediction), SOLVERS[solver].facts.inversion_order
    denoise, x0 = curved(schedule), STD * noise(2, 1, 4, 4)

    def round_trip_error(order):
        x_T = diffusion.implicit_inversion(Predictor(denoise, schedule), x0, schedule.inversion_levels(40), order=order)
        x0_again = SOLVERS[solver](Predictor(denoise, schedule), x_T, schedule.decoding_levels(40))
        return float((x0_again - x0).abs().mean())

    assert round_trip_error(declared) < 0.005
    assert round_trip_error(declared) < round_trip_error(3 if declared == 1 else 1) / 5


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["cosine", "rectified_flow"])
def test_nothing_is_divided_by_zero_where_x_T_holds_no_signal(solver, name):
    schedule = DiffusionSchedule(schedule=name, prediction="v", zero_terminal_snr=name != "rectified_flow")
    assert schedule.level(999)[0] == 0
    runs = [schedule.decoding_levels(8)]
    if solver in UPWARDS:
        runs += [schedule.paper_inversion_levels(8, "leading"), schedule.inversion_levels(8)]
    for levels in runs:
        assert SOLVERS[solver](Predictor(exact(schedule), schedule), noise(1, 1, 4, 4), levels).isfinite().all()


@pytest.mark.parametrize("run", RUNS)
def test_images_are_solved_in_float32_whatever_their_batch_and_the_callback_is_given_every_step(run):
    schedule, calls = DiffusionSchedule(), []
    x, levels = noise(3, 1, 4, 4).half(), levels_for(run, schedule, 4)
    solve = partial(RUNS[run], Predictor(exact(schedule), schedule, (-1, 1)), levels=levels)
    from_half = solve(x, callback=lambda *step: calls.append(step))
    assert from_half.dtype == torch.float32
    assert torch.equal(from_half, solve(x.float()))
    assert [call[:2] for call in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(calls[-1][2], from_half)
    torch.testing.assert_close(from_half, torch.cat([solve(x[[i]]) for i in range(3)]))


@pytest.mark.parametrize("solver", SOLVERS)
def test_clipping_keeps_every_decoded_value_in_range(solver):
    schedule = DiffusionSchedule()
    levels, x = [999, 500, 0, diffusion.CLEAN], 3 * noise(4, 1, 4, 4)
    clipped, free = [], []
    for path, clip_range in ((clipped, (-1, 1)), (free, None)):
        SOLVERS[solver](
            Predictor(exact(schedule, std=2.0), schedule, clip_range), x, levels,
            callback=lambda done, total, x, path=path: path.append(x),
        )  # fmt: skip
    assert clipped[-1].abs().max() <= 1
    assert free[-1].abs().max() > 1
    assert any(not torch.allclose(a, b) for a, b in zip(clipped[:-1], free[:-1], strict=True))  # not only at the end


def test_adams_of_first_order_is_ddim():
    for name, prediction in KINDS:
        schedule = DiffusionSchedule(schedule=name, prediction=prediction)
        x, levels = noise(1, 1, 4, 4), schedule.decoding_levels(7)
        first = adams(Predictor(exact(schedule), schedule), x, levels, order=1)
        torch.testing.assert_close(first, ddim(Predictor(exact(schedule), schedule), x, levels))


def test_a_registered_solver_is_found_by_its_name_and_carries_its_facts():
    def double(denoise, schedule, x, levels, *, clip_range=None, callback=None):
        return 2 * x

    facts = diffusion.SolverFacts(order=2, evaluations_per_step=3)
    try:
        assert diffusion.register_solver("double", facts)(double) is double
        assert SOLVERS["double"] is double
    finally:
        SOLVERS.pop("double", None)
    assert solver_facts(double) == solver_facts(partial(double, clip_range=None)) == facts
    assert solver_facts(lambda *_: None) == diffusion.SolverFacts()


def test_the_package_offers_each_solver_and_spacing_under_its_name():
    ours = [name for name, solver in SOLVERS.items() if solver.__module__.startswith("monai_diffae.")]
    assert list(get_args(SolverName)) == sorted(ours)
    assert list(get_args(SpacingName)) == list(diffusion.SPACINGS)
    assert all(getattr(diffusion, name) is SOLVERS[name] for name in ours)
    assert set(ours) < set(diffusion.__all__)
    assert all(getattr(diffusion, name) is not None for name in diffusion.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        diffusion.nothing  # noqa: B018


LEVELS = [700, 820, 930]
"""The levels of three evaluations; a step starts from the first."""


def evaluation(t, parameterisation, value):
    """An evaluation whose x0, eps or velocity is ``value``."""
    value, zero = torch.tensor([[value]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    return Evaluation(t, value, zero) if parameterisation == "x0" else Evaluation(t, zero, value)


@pytest.mark.parametrize(
    ("name", "prediction", "t_next"), [("linear_beta", "eps", 500), ("cosine", "v", 760), ("rectified_flow", "v", 500)]
)
@pytest.mark.parametrize(("parameterisation", "order"), [("x0", 2), ("eps", 3), ("velocity", 1), ("velocity", 3)])
def test_a_step_is_exact_where_the_network_is_polynomial_in_log_snr(name, prediction, parameterisation, t_next, order):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    coefficients = [0.3, -0.2, 0.1][:order]

    def network(log_snr):
        return np.polynomial.polynomial.polyval(log_snr, coefficients)

    evaluations = [evaluation(t, parameterisation, network(schedule.log_snr(t))) for t in LEVELS[:order]]
    x = torch.full((1, 1), 0.7, dtype=torch.float64)
    (alpha, sigma), (alpha_next, sigma_next) = schedule.level(LEVELS[0]), schedule.level(t_next)
    # the integral by a fine midpoint rule over s = sigma / (alpha + sigma)
    edges = np.linspace(sigma / (alpha + sigma), sigma_next / (alpha_next + sigma_next), 20_001)
    middle = (edges[1:] + edges[:-1]) / 2
    variable, scale, scale_next = {
        "x0": ((1 - edges) / edges, sigma, sigma_next),
        "eps": (edges / (1 - edges), alpha, alpha_next),
        "velocity": (edges, alpha + sigma, alpha_next + sigma_next),
    }[parameterisation]
    values = network(np.log((1 - middle + schedule.log_snr_cap) / middle))
    expected = scale_next * (0.7 / scale + float((values * np.diff(variable)).sum()))
    actual = interpolated_step(schedule, x, LEVELS[0], t_next, evaluations, parameterisation)
    assert float(actual) == pytest.approx(expected, rel=1e-6)
