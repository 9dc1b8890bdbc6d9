"""Solvers compared step by step with the independent implementations of the library ``diffusers``."""

from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from monai_diffae.diffusion import DiffusionSchedule, Predictor, ddim, dpmpp_2m, unipc

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
THEIR_NAME = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def network(x, t):
    """A smooth function that differs between levels and between pixels."""
    t = torch.as_tensor(t).reshape(-1, *[1] * (x.ndim - 1)) / 1000
    return torch.tanh(x * (1.3 - t)) + 0.3 * torch.cos(3 * x + t)


def ours(solver, schedule, x, levels):
    path = []
    solver(Predictor(network, schedule), x, levels, callback=lambda done, total, x: path.append(x))
    return path


def theirs(scheduler, x, **step_arguments):
    path = []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, **step_arguments).prev_sample
        path.append(x)
    return path


def assert_same(a, b):
    assert len(a) == len(b)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        torch.testing.assert_close(x, y, atol=2e-4, rtol=2e-4, msg=lambda m, i=i: f"step {i}: {m}")


X_T = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(2, 1, 6, 6), (1, 2, 4, 4, 4)], ids=["2D", "3D"])
@pytest.mark.parametrize(("prediction", "steps"), [("eps", 50), ("x0", 10), ("v", 5)])
def test_ddim(shape, prediction, steps):
    x_T = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler(
        **BETAS, prediction_type=THEIR_NAME[prediction], clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    schedule = DiffusionSchedule(prediction=prediction, spacing="trailing")
    assert_same(ours(ddim, schedule, x_T, schedule.decoding_levels(steps)), theirs(scheduler, x_T))


def test_ddim_with_eta():
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    schedule = DiffusionSchedule(prediction="eps", spacing="trailing")
    generator = torch.Generator().manual_seed(3)
    stochastic = partial(ddim, eta=0.7, generator=torch.Generator().manual_seed(3))
    # diffusers draws noise in the last step, too, but with variance 0
    assert_same(
        ours(stochastic, schedule, X_T, schedule.decoding_levels(10)),
        theirs(scheduler, X_T, eta=0.7, generator=generator),
    )


@pytest.mark.parametrize(("prediction", "spacing"), [("eps", "trailing"), ("x0", "linspace"), ("v", "logsnr")])
def test_dpmpp_2m(prediction, spacing):
    schedule = DiffusionSchedule(prediction=prediction, spacing=spacing)
    levels = schedule.decoding_levels(10)
    scheduler = DPMSolverMultistepScheduler(
        **BETAS, prediction_type=THEIR_NAME[prediction], algorithm_type="dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(timesteps=levels[:-1])
    assert_same(ours(dpmpp_2m, schedule, X_T, levels), theirs(scheduler, X_T))


@pytest.mark.parametrize(
    ("prediction", "parameterisation", "order"),
    [("eps", "x0", 2), ("x0", "x0", 3), ("v", "x0", 1), ("eps", "eps", 3), ("v", "eps", 2)],
)
def test_unipc(prediction, parameterisation, order):
    schedule = DiffusionSchedule(prediction=prediction, spacing="trailing")
    scheduler = UniPCMultistepScheduler(
        **BETAS, prediction_type=THEIR_NAME[prediction], solver_order=order, predict_x0=parameterisation == "x0",
        timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(10)
    solver = partial(unipc, order=order, parameterisation=parameterisation)
    path, expected = ours(solver, schedule, X_T, schedule.decoding_levels(10)), theirs(scheduler, X_T)
    if parameterisation == "eps":  # at x0 itself log-SNR is infinite, and so is the result of diffusers
        path, expected = path[:-1], expected[:-1]
    assert_same(path, expected)
