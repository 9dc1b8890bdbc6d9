import pytest

from monai_diffae.diffusion import SPACINGS, DiffusionSchedule
from monai_diffae.errors import ConfigError

SCHEDULES = [("linear_beta", "eps"), ("linear_beta", "v"), ("cosine", "v"), ("rectified_flow", "v")]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("name", "prediction"), SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 64, 100, 333, 500, 999, 1000])
def test_timesteps_are_as_many_as_steps_ascending_and_in_range(spacing, name, prediction, steps):
    t = DiffusionSchedule(schedule=name, prediction=prediction).inference_timesteps(steps, spacing)
    assert len(t) == steps
    assert t == sorted(set(t))
    assert 0 <= t[0] <= t[-1] <= 999
    assert all(type(level) is int for level in t)
    if spacing in ("trailing", "logsnr"):
        assert t[-1] == 999


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ConfigError, match="steps is"):
        DiffusionSchedule().inference_timesteps(steps)


def test_an_unknown_spacing_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(ConfigError, match="spacing is 'log'; choose one of: logsnr, leading"):
        DiffusionSchedule().inference_timesteps(5, "log")


@pytest.mark.parametrize(("name", "prediction"), SCHEDULES)
def test_logsnr_steps_are_equal_in_log_snr_and_end_with_hardly_any_noise(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    t = schedule.inference_timesteps(10)
    log_snr = [schedule.log_snr(level) for level in t]
    steps = [a - b for a, b in zip(log_snr, log_snr[1:], strict=False)]
    assert max(steps) < 1.3 * min(steps)  # except for rounding to whole timesteps
    alpha, sigma = schedule.level(t[0])
    assert sigma / alpha < 0.02
    alpha_40, sigma_40 = schedule.level(schedule.inference_timesteps(40)[0])
    assert sigma_40 / alpha_40 < sigma / alpha * 0.6  # more steps leave less noise


def test_the_papers_levels():
    schedule = DiffusionSchedule(prediction="eps", spacing="leading")
    assert schedule.decoding_levels(4) == [750, 500, 250, 0, -1]
    assert schedule.inversion_levels(4) == [-1, 0, 250, 500, 750]
    assert schedule.paper_inversion_levels(4) == [0, 250, 500, 750, 1000]
    assert schedule.level(-1) == (1, 0)
    assert schedule.level(1000) == (0, 1)
