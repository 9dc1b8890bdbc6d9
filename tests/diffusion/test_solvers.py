"""With the exact denoiser of Gaussian data everything is known in closed form."""

import gc
from itertools import pairwise

import pytest
import torch
from gaussian import KINDS, STD, exact

from monai_diffae.diffusion import (
    CLEAN,
    SOLVERS,
    SPACINGS,
    DiffusionSchedule,
    adams,
    ddim,
    implicit_inversion,
    timesteps,
    unipc,
)
from monai_diffae.errors import ConfigError


def along_the_ode(schedule, x_t, t, t_next, std=STD):
    """Where the probability-flow ODE takes x_t: it only scales Gaussian data."""
    (alpha, sigma), (alpha_next, sigma_next) = schedule.level(t), schedule.level(t_next)
    return x_t * ((alpha_next**2 * std**2 + sigma_next**2) / (alpha**2 * std**2 + sigma**2)) ** 0.5


def noise(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decoding_error(solver, schedule, steps, spacing=None, shape=(2, 1, 4, 4), to_x0=True):
    """How far from the ODE a decoding ends: at x0, or at the cleanest timestep, before the jump to x0."""
    x_T, levels = noise(*shape), schedule.decoding_levels(steps, spacing)
    levels = levels if to_x0 else levels[:-1]
    x = SOLVERS[solver](exact(schedule), schedule, x_T, levels)
    return float((x - along_the_ode(schedule, x_T, levels[0], levels[-1])).abs().mean())


@pytest.mark.parametrize(("solver", "order", "few", "many"), [
    ("ddim", 1, 20, 80), ("heun", 2, 20, 80), ("dpmpp_2m", 2, 20, 80), ("adams", 3, 20, 80), ("unipc", 3, 5, 40),
])  # fmt: skip
@pytest.mark.parametrize(("name", "prediction"), KINDS)
@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 1, 4, 4, 4), (2, 16)])
def test_solvers_converge_to_the_ode_at_their_order(solver, order, few, many, name, prediction, shape, monkeypatch):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    errors = []
    for steps in (few, many):
        monkeypatch.setattr(timesteps, "NOISE_LEFT", 0.015 * steps)  # both end at the same level
        errors.append(decoding_error(solver, schedule, steps, shape=shape, to_x0=False))
    assert errors[1] < errors[0] / (0.6 * (many / few) ** order)


@pytest.mark.parametrize(("name", "prediction"), KINDS)
def test_ten_evaluations_of_adams_are_closer_to_the_ode_than_fifty_of_ddim(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    best_of_ddim = min(decoding_error("ddim", schedule, 50, spacing) for spacing in SPACINGS)
    assert decoding_error("adams", schedule, 10) < best_of_ddim


@pytest.mark.parametrize("name", ["linear_beta", "cosine", "rectified_flow"])
def test_ddim_is_eulers_method_on_the_straight_path(name):
    schedule = DiffusionSchedule(schedule=name, prediction="v")
    x, levels = noise(1, 1, 4, 4), schedule.decoding_levels(7)
    by_hand = x
    for t, t_next in pairwise(levels):
        (alpha, sigma), (alpha_next, sigma_next) = schedule.level(t), schedule.level(t_next)
        batch = torch.tensor([t])
        x0, eps = schedule.to_x0_eps(exact(schedule)(by_hand, batch), by_hand, batch)
        straight = by_hand / (alpha + sigma)
        straight = straight + (sigma_next / (alpha_next + sigma_next) - sigma / (alpha + sigma)) * (eps - x0)
        by_hand = straight * (alpha_next + sigma_next)
    torch.testing.assert_close(SOLVERS["euler"](exact(schedule), schedule, x, levels), by_hand)


def test_adams_of_first_order_is_ddim():
    for name, prediction in KINDS:
        schedule = DiffusionSchedule(schedule=name, prediction=prediction)
        x, levels = noise(1, 1, 4, 4), schedule.decoding_levels(7)
        first = adams(exact(schedule), schedule, x, levels, order=1)
        torch.testing.assert_close(first, ddim(exact(schedule), schedule, x, levels))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_network_that_always_says_the_same_x0_is_followed_in_one_step_or_many(solver):
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="x0")
    target = torch.full((1, 1, 4, 4), 0.3)
    for steps in (1, 2, 9):
        x0 = SOLVERS[solver](lambda x, t: target, schedule, noise(1, 1, 4, 4).float(), schedule.decoding_levels(steps))
        torch.testing.assert_close(x0, target)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["cosine", "rectified_flow"])
def test_nothing_is_divided_by_zero_where_x_T_holds_no_signal(solver, name):
    schedule = DiffusionSchedule(schedule=name, prediction="v", zero_terminal_snr=name != "rectified_flow")
    assert schedule.level(999)[0] == 0
    runs = [schedule.decoding_levels(8)]
    if solver in ("ddim", "heun"):  # the others only go down
        runs += [schedule.paper_inversion_levels(8, "leading"), schedule.inversion_levels(8)]
    for levels in runs:
        assert SOLVERS[solver](exact(schedule), schedule, noise(1, 1, 4, 4), levels).isfinite().all()


@pytest.mark.parametrize("solver", ["adams", "dpmpp_2m", "unipc"])
def test_solvers_that_only_go_down_say_so(solver):
    schedule = DiffusionSchedule()
    for levels in (schedule.inversion_levels(5), [5, 5, -1]):
        with pytest.raises(ConfigError, match=f"{solver} needs falling levels, from x_T down; to invert, use implicit"):
            SOLVERS[solver](exact(schedule), schedule, noise(1, 1, 4, 4), levels)
    with pytest.raises(ConfigError, match="parameterisation is 'velocity'; choose one of: x0, eps"):
        unipc(exact(schedule), schedule, noise(1, 1, 4, 4), schedule.decoding_levels(5), parameterisation="velocity")
    with pytest.raises(ConfigError, match="ddim with eta needs falling levels"):
        ddim(exact(schedule), schedule, noise(1, 1, 4, 4), schedule.inversion_levels(5), eta=0.5)


@pytest.mark.parametrize("run", ["adams", "ddim", "heun", "dpmpp_2m", "unipc", "implicit_inversion"])
def test_half_precision_images_are_solved_in_float32(run):
    schedule = DiffusionSchedule()
    x = noise(1, 1, 8, 8).half()
    levels = levels_for(run, schedule, 10)
    from_half = RUNS[run](exact(schedule), schedule, x, levels)
    assert from_half.dtype == torch.float32
    torch.testing.assert_close(from_half, RUNS[run](exact(schedule), schedule, x.float(), levels), atol=0, rtol=0)


@pytest.mark.parametrize(("name", "prediction"), [("linear_beta", "eps"), ("rectified_flow", "v")])
def test_stochastic_decoding_follows_its_generator_and_keeps_the_spread(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction, spacing="trailing")
    x_T = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def decode(seed):
        g = torch.Generator().manual_seed(seed)
        return ddim(exact(schedule), schedule, x_T, schedule.decoding_levels(200), eta=1.0, generator=g)

    assert torch.equal(decode(1), decode(1))
    assert not torch.equal(decode(1), decode(2))
    assert decode(1).std() == pytest.approx(STD, rel=0.1)


RUNS = {**SOLVERS, "implicit_inversion": implicit_inversion}


def levels_for(run, schedule, steps):
    return schedule.inversion_levels(steps) if run == "implicit_inversion" else schedule.decoding_levels(steps)


@pytest.mark.parametrize("run", RUNS)
def test_the_callback_sees_every_step_and_what_it_reached(run):
    schedule = DiffusionSchedule()
    calls = []
    x = RUNS[run](
        exact(schedule), schedule, torch.randn(1, 1, 4, 4), levels_for(run, schedule, 4),
        callback=lambda done, total, x: calls.append((done, total, x)),
    )  # fmt: skip
    assert [call[:2] for call in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(calls[-1][2], x)


@pytest.mark.parametrize("run", RUNS)
def test_an_image_does_not_depend_on_its_batch(run):
    schedule = DiffusionSchedule()
    x, levels = torch.randn(3, 1, 4, 4), levels_for(run, schedule, 6)
    together = RUNS[run](exact(schedule), schedule, x, levels, clip_range=(-1, 1))
    alone = torch.cat(
        [RUNS[run](exact(schedule), schedule, x[i : i + 1], levels, clip_range=(-1, 1)) for i in range(3)]
    )
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("run", RUNS)
def test_memory_does_not_grow_with_the_steps(run):
    """The images that are alive after a step: as many after 10 steps as after 200."""
    schedule = DiffusionSchedule()
    shape = (1, 1, 7, 5)
    most = {}
    for steps in (10, 200):
        alive = []

        def count(done, total, x, alive=alive):
            alive.append(sum(torch.is_tensor(o) and o.shape == shape for o in gc.get_objects()))

        RUNS[run](exact(schedule), schedule, torch.randn(shape), levels_for(run, schedule, steps), callback=count)
        most[steps] = max(alive)
    assert most[200] <= most[10]


@pytest.mark.parametrize("solver", SOLVERS)
def test_clipping_keeps_every_decoded_value_in_range(solver):
    schedule = DiffusionSchedule()
    levels, x = [999, 500, 0, CLEAN], 3 * noise(4, 1, 4, 4)
    clipped, free = [], []
    for way, clip_range in ((clipped, (-1, 1)), (free, None)):
        SOLVERS[solver](
            exact(schedule, std=2.0), schedule, x, levels, clip_range=clip_range,
            callback=lambda done, total, x, way=way: way.append(x),
        )  # fmt: skip
    assert clipped[-1].abs().max() <= 1
    assert free[-1].abs().max() > 1
    assert any(not torch.allclose(a, b) for a, b in zip(clipped[:-1], free[:-1], strict=True))  # not only at the end


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_evaluation_a_step_but_two_for_heun(solver):
    schedule = DiffusionSchedule()
    asked = []

    def denoise(x, t):
        asked.append(int(t[0]))
        return exact(schedule)(x, t)

    levels = schedule.decoding_levels(5)
    SOLVERS[solver](denoise, schedule, torch.randn(1, 1, 4, 4), levels)
    two_each = [levels[0], *[t for t in levels[1:-1] for _ in range(2)]]
    assert asked == (two_each if solver == "heun" else levels[:-1])
