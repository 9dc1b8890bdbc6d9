import pytest
import torch

from monai_diffae.diffusion import SPACINGS, DiffusionSchedule
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError

SCHEDULES = [("linear_beta", "eps"), ("linear_beta", "v"), ("cosine", "v"), ("rectified_flow", "v")]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("name", "prediction"), [("linear_beta", "eps"), ("rectified_flow", "v")])
def test_timesteps_are_as_many_as_steps_ascending_and_in_range(spacing, name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    for steps in (1, 2, 7, 100, 333, 1000):
        t = schedule.inference_timesteps(steps, spacing)
        assert len(t) == steps
        assert t == sorted(set(t))
        assert 0 <= t[0] <= t[-1] <= 999
        assert all(type(level) is int for level in t)
        if spacing in ("trailing", "logsnr"):
            assert t[-1] == 999


def test_impossible_numbers_of_steps_and_unknown_spacings_are_refused():
    for steps in (0, 1001):
        with pytest.raises(ConfigError, match="steps is"):
            DiffusionSchedule().inference_timesteps(steps)
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


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_training_timesteps_cover_the_range_and_follow_their_generator(sampling):
    schedule = DiffusionSchedule(num_train_timesteps=50, timestep_sampling=sampling)
    t = schedule.sample_timesteps(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(t, schedule.sample_timesteps(20_000, torch.Generator().manual_seed(0)))
    counts = torch.bincount(t, minlength=50).float()
    assert len(counts) == 50
    middle_share = counts[17:33].sum() / counts.sum()
    assert middle_share > 0.45 if sampling == "logit_normal" else 0.29 < middle_share < 0.35


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_timestep_shift_multiplies_the_odds_of_t(sampling):
    def timesteps(shift):
        schedule = DiffusionSchedule(timestep_sampling=sampling, timestep_shift=shift)
        return schedule.sample_timesteps(100_000, torch.Generator().manual_seed(0)).double()

    plain, shifted = timesteps(1.0), timesteps(3.0)
    assert 0 <= shifted.min() < shifted.max() <= 999
    # the median of both distributions is T / 2: odds of 1, which become odds of 3
    assert plain.median() == pytest.approx(500, abs=5)
    assert shifted.median() == pytest.approx(750, abs=5)


def test_stratified_timesteps_are_one_from_each_part():
    assert DiffusionSchedule().stratified_timesteps(10).tolist() == list(range(50, 1000, 100))


def test_seeds_are_distinct_and_stable():
    assert seed_of(0, "noise", 1) == seed_of(0, "noise", 1)
    assert len({seed_of(s, r, i) for s in range(10) for r in range(10) for i in range(10)}) == 1000


def test_the_noise_of_an_image_is_standard_normal_and_the_same_in_every_batch():
    noise = image_noise((1, 32, 32), 0, list(range(20)))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert torch.equal(image_noise((1, 32, 32), 0, [7])[0], noise[7])
