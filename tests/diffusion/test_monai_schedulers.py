"""MONAI's schedulers as schedules of ours: levels, targets, solvers, and their own steps."""

import logging

import pytest
import torch
from gaussian import STD, exact, noise
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler, RFlowScheduler

from monai_diffae.diffusion import DiffusionSchedule, Predictor, as_schedule, ddim, heun, solvers
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer

SCHEDULERS = {
    "ddpm": DDPMScheduler(1000, clip_sample=False),
    "ddim": DDIMScheduler(1000, schedule="scaled_linear_beta", prediction_type="v_prediction", clip_sample=False),
    "ddim_cosine": DDIMScheduler(1000, schedule="cosine", prediction_type="sample", clip_sample=False),
    "pndm": PNDMScheduler(1000, skip_prk_steps=True),
    "flow": RFlowScheduler(1000),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_levels_and_targets_are_those_of_monai(name):
    scheduler, schedule = SCHEDULERS[name], as_schedule(SCHEDULERS[name])
    x0, eps, t = noise(4, 1, 4, 4), noise(4, 1, 4, 4, seed=1), torch.tensor([1, 10, 500, 999])
    x_t = scheduler.add_noise(x0.float(), eps.float(), t).double()
    torch.testing.assert_close(schedule.q_sample(x0, eps, t), x_t, atol=1e-5, rtol=0)
    target = schedule.target(x0, eps, t)
    if name == "flow":
        assert torch.equal(target, x0 - eps)
    elif scheduler.prediction_type == "v_prediction":
        torch.testing.assert_close(target, scheduler.get_velocity(x0, eps, t), atol=1e-5, rtol=0)
    x0_again, eps_again = schedule.to_x0_eps(target, schedule.q_sample(x0, eps, t), t)
    torch.testing.assert_close(x0_again, x0)
    torch.testing.assert_close(eps_again, eps)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_our_solvers_decode_and_invert_with_them(name):
    schedule, x_T = as_schedule(SCHEDULERS[name]), noise(1, 1, 8, 8)
    x0 = heun(Predictor(exact(schedule), schedule), x_T, schedule.decoding_levels(40))
    torch.testing.assert_close(x0, STD * x_T, atol=0.02, rtol=0.02)  # the ODE only scales Gaussian data


@pytest.mark.parametrize(("name", "tolerance"), [("flow", 0.05), ("pndm", 0.05), ("ddim", 0.05)])
def test_their_own_steps_end_where_monais_loop_ends(name, tolerance):
    scheduler, schedule = SCHEDULERS[name], as_schedule(SCHEDULERS[name])
    denoise, x_T = exact(schedule), noise(3, 1, 8, 8).float()
    ours = solvers.scheduler(
        Predictor(denoise, schedule), x_T, schedule.decoding_levels(1000 if name == "ddim" else 50)
    )
    scheduler.set_timesteps(1000 if name == "ddim" else 50)
    theirs = DiffusionInferer(scheduler).sample(x_T, lambda x, timesteps, context: denoise(x, timesteps), verbose=False)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours, STD * x_T, atol=tolerance, rtol=tolerance)


def test_noise_that_ddpm_adds_does_not_depend_on_the_batch():
    schedule, x_T = as_schedule(SCHEDULERS["ddpm"]), noise(3, 1, 8, 8).float()
    levels = schedule.decoding_levels(1000)
    together = solvers.scheduler(Predictor(exact(schedule), schedule), x_T, levels)
    torch.testing.assert_close(solvers.scheduler(Predictor(exact(schedule), schedule), x_T[1:2], levels), together[1:2])
    assert abs(float(together.std()) - STD) < 0.05
    assert abs(float(torch.corrcoef(together.flatten(1))[0, 1])) < 0.5  # each image has noise of its own


def test_the_steps_of_ddim_in_monai_end_between_its_timesteps(caplog):
    scheduler = DDIMScheduler(1000, clip_sample=False)
    schedule, x_T = as_schedule(scheduler), noise(1, 1, 8, 8)
    predict = Predictor(exact(schedule), schedule)
    scheduler.set_timesteps(20)
    textbook = ddim(predict, x_T, [*scheduler.timesteps.tolist(), -1])
    assert (solvers.scheduler(predict, x_T, textbook_levels(20)) - textbook).norm() > 0.05 * textbook.norm()
    # the cause: with a number of steps at which both agree, there is no difference
    schedule.warn_of_own_steps(20)
    assert "its 20 timesteps are up to 53 apart, but its step moves by 50" in caplog.text
    caplog.clear()
    schedule.warn_of_own_steps(1000)
    assert not caplog.records


def textbook_levels(steps):
    return list(range(steps + 1))


def test_a_scheduler_that_was_changed_is_read_again():
    scheduler = DDIMScheduler(1000)
    assert as_schedule(scheduler) is as_schedule(scheduler)
    scheduler.prediction_type, scheduler.clip_sample = "v_prediction", False
    assert (as_schedule(scheduler).prediction, as_schedule(scheduler).clip_range) == ("v", None)


def test_our_own_schedule_steps_as_ddim():
    schedule, x_T = DiffusionSchedule(), noise(1, 1, 4, 4)
    predict, levels = Predictor(exact(schedule), schedule), schedule.decoding_levels(5)
    assert torch.equal(solvers.scheduler(predict, x_T, levels), ddim(predict, x_T, levels))
    assert as_schedule(schedule) is schedule


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (DDPMScheduler(1000, variance_type="learned"), "variance_type is learned"),
        (RFlowScheduler(use_timestep_transform=True), "use_timestep_transform is not supported"),
        (RFlowScheduler(sample_method="logit-normal", loc=1.0), "loc and scale are not supported"),
        (RFlowScheduler(use_discrete_timesteps=False), "use_discrete_timesteps=false is not supported"),
        (logging, "a module is none"),
    ],
)
def test_what_cannot_be_used_is_refused(scheduler, said):
    with pytest.raises(ConfigError, match=said):
        as_schedule(scheduler)


def test_an_inferer_refuses_steps_that_pndm_cannot_make():
    with pytest.raises(ConfigError, match="steps is 3; PNDMScheduler needs at least 4"):
        DiffusionAutoencoderInferer(PNDMScheduler(1000), solver="scheduler", steps=3)


def test_an_inferer_says_that_our_schedules_step_as_ddim(caplog):
    DiffusionAutoencoderInferer(DiffusionSchedule(), solver="scheduler")
    assert "solver: scheduler is ddim here" in caplog.text
