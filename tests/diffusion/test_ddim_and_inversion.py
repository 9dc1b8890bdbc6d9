"""With the exact denoiser of Gaussian data everything is known in closed form."""

from itertools import pairwise

import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule, ddim, ddim_invert

STD = 0.5
KINDS = [
    ("linear_beta", "eps"),
    ("linear_beta", "v"),
    ("cosine", "v"),
    ("rectified_flow", "v"),
    ("rectified_flow", "x0"),
]


def exact(schedule, std=STD):
    """The best possible network for data from N(0, std^2): E[target | x_t]."""

    def denoise(x, t):
        alpha, sigma = schedule.coefficients(t, x)
        variance = alpha**2 * std**2 + sigma**2
        return schedule.target(alpha * std**2 / variance * x, sigma / variance * x, t)

    return denoise


def true_x0(schedule, x_t, t, std=STD):
    """Where the probability-flow ODE takes x_t: it only scales Gaussian data."""
    alpha, sigma = schedule.coefficients(torch.tensor([t]), x_t)
    return x_t * std / (alpha**2 * std**2 + sigma**2).sqrt()


@pytest.mark.parametrize(("name", "prediction"), KINDS)
@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 1, 4, 4, 4)])
def test_decoding_converges_to_the_ode_at_first_order(name, prediction, shape):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction, spacing="trailing")
    x_T = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = true_x0(schedule, x_T, 999)
    errors = []
    for steps in (25, 50, 100):
        x0 = ddim(exact(schedule), schedule, x_T, schedule.inference_timesteps(steps))
        errors.append(float((x0 - wanted).abs().mean()))
    assert errors[-1] < 0.02
    assert errors[1] < 0.65 * errors[0]
    assert errors[2] < 0.65 * errors[1]


@pytest.mark.parametrize(("name", "prediction"), KINDS)
def test_the_round_trip_error_falls_as_one_over_steps(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    x0 = STD * torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for steps in (20, 40, 80, 160):
        t = schedule.inference_timesteps(steps)
        x_T = ddim_invert(exact(schedule), schedule, x0, t)
        errors.append(float((ddim(exact(schedule), schedule, x_T, t) - x0).abs().mean()))
    ratios = [a / b for a, b in pairwise(errors)]
    assert errors[-1] < 0.02
    assert all(1.5 < ratio < 3 for ratio in ratios), (errors, ratios)


def test_inversion_of_data_gives_standard_noise():
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
    x0 = STD * torch.randn(500, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x_T = ddim_invert(exact(schedule), schedule, x0, schedule.inference_timesteps(200))
    assert x_T.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("name", "prediction"), [("linear_beta", "eps"), ("rectified_flow", "v")])
def test_stochastic_decoding_follows_its_generator_and_keeps_the_spread(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction, spacing="trailing")
    x_T = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def decode(seed):
        g = torch.Generator().manual_seed(seed)
        return ddim(exact(schedule), schedule, x_T, schedule.inference_timesteps(200), eta=1.0, generator=g)

    assert torch.equal(decode(1), decode(1))
    assert not torch.equal(decode(1), decode(2))
    assert decode(1).std() == pytest.approx(STD, rel=0.1)


@pytest.mark.parametrize("solver", [ddim, ddim_invert])
def test_the_callback_counts_every_step(solver):
    schedule = DiffusionSchedule()
    calls = []
    t = schedule.inference_timesteps(4)
    solver(
        exact(schedule), schedule, torch.randn(1, 1, 4, 4), t, callback=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("solver", [ddim, ddim_invert])
def test_an_image_does_not_depend_on_its_batch(solver):
    schedule = DiffusionSchedule()
    x, t = torch.randn(3, 1, 4, 4), schedule.inference_timesteps(6)
    together = solver(exact(schedule), schedule, x, t, clip_range=(-1, 1))
    alone = torch.cat([solver(exact(schedule), schedule, x[i : i + 1], t, clip_range=(-1, 1)) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_clipping_keeps_every_decoded_value_in_range():
    schedule = DiffusionSchedule()
    x0 = ddim(exact(schedule, std=2.0), schedule, 3 * torch.randn(4, 1, 4, 4), [0, 500, 999], clip_range=(-1, 1))
    assert x0.abs().max() <= 1


def test_a_clipped_round_trip_still_converges():
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
    x0 = (STD * torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    errors = []
    for steps in (20, 80):
        t = schedule.inference_timesteps(steps)
        x_T = ddim_invert(exact(schedule), schedule, x0, t, clip_range=(-1, 1))
        errors.append(float((ddim(exact(schedule), schedule, x_T, t, clip_range=(-1, 1)) - x0).abs().mean()))
    assert errors[1] < 0.5 * errors[0]
