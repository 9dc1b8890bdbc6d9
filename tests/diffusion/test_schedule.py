"""The schedule: signal and noise, conversions, the levels of a run, training timesteps, and noise by seed."""

import pytest
import torch
from monai.inferers import DiffusionInferer
from tiny_bundles import small_autoencoder
from torch import nn

from monai_diffae.diffusion import SPACINGS, DiffusionSchedule, Predictor, ddim
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError

FEW = [("linear_beta", "eps"), ("linear_beta", "v"), ("rectified_flow", "v")]


@pytest.mark.parametrize(
    ("name", "prediction", "zero_snr"),
    [
        ("linear_beta", "eps", False), ("linear_beta", "v", False), ("scaled_linear_beta", "x0", False),
        ("cosine", "v", False), ("linear_beta", "v", True), ("cosine", "x0", True), ("rectified_flow", "x0", False),
        ("rectified_flow", "v", False),
    ],
)  # fmt: skip
def test_the_target_gives_back_x0_and_eps(name, prediction, zero_snr):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction, zero_terminal_snr=zero_snr)
    t = torch.tensor([0, 1, 10, 500, 900, 998, 999])
    x0, eps = torch.randn(2, 7, 1, 4, 4, dtype=torch.float64)
    x_t = schedule.q_sample(x0, eps, t)
    x0_again, eps_again = schedule.to_x0_eps(schedule.target(x0, eps, t), x_t, t)
    torch.testing.assert_close(x0_again, x0)
    torch.testing.assert_close(eps_again, eps)
    assert torch.equal(schedule.q_sample(x0, eps, torch.full((7,), -1)), x0)  # level -1 is x0


def test_the_schedules_are_those_of_the_papers():
    """Nichol and Dhariwal 2021 (cosine), Ho et al. 2020 (linear), Liu et al. 2023 (rectified flow), by hand."""
    t = torch.tensor([0, 300, 998])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    linear = DiffusionSchedule(schedule="linear_beta")
    torch.testing.assert_close(linear.alpha[t + 1] ** 2, (1 - betas).cumprod(0)[t], rtol=1e-6, atol=0)
    cosine = DiffusionSchedule(schedule="cosine")
    curve = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    torch.testing.assert_close(cosine.alpha[t + 1] ** 2, (curve / curve[0])[t + 1], rtol=1e-3, atol=0)
    for schedule in (linear, cosine):
        torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones_like(schedule.alpha))
    x0, eps = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    flow = DiffusionSchedule(schedule="rectified_flow", prediction="v")
    share = ((t + 1) / 1000).double().view(3, 1, 1, 1)
    torch.testing.assert_close(flow.q_sample(x0, eps, t), (1 - share) * x0 + share * eps)
    torch.testing.assert_close(flow.target(x0, eps, t), eps - x0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "eps", "schedule": "rectified_flow"}, "eps.*use prediction 'v'"),
        ({"spacing": "x"}, "spacing: .*is not one of"),
        ({"schedule": "linear_beta", "nope": 1}, "nope: the schedule linear_beta takes beta_start, beta_end"),
    ],
)
def test_settings_that_give_no_schedule_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionSchedule(**settings)


def test_the_tables_stay_in_float64_whatever_the_network_and_the_images_are():
    holder = nn.Module()
    holder.layer, holder.schedule = nn.Linear(1, 1), DiffusionSchedule()
    before = holder.schedule.alpha.clone()
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.float):
        cast(holder)
        cast(holder.schedule)
    x = torch.randn(2, 1, 4, 4).half()
    assert holder.schedule.add_noise(x, torch.randn_like(x), torch.tensor([0, 999])).dtype == torch.float16
    assert holder.schedule.sigma.dtype == torch.float64
    assert torch.equal(holder.schedule.alpha, before)
    assert not holder.schedule.state_dict()


@pytest.mark.parametrize("name", ["linear_beta", "scaled_linear_beta", "cosine"])
def test_zero_terminal_snr_removes_the_signal_of_the_last_level_and_keeps_the_first(name):
    rescaled = DiffusionSchedule(schedule=name, zero_terminal_snr=True)
    plain = DiffusionSchedule(schedule=name)
    assert rescaled.level(999) == (0, 1)
    torch.testing.assert_close(rescaled.alpha[:2], plain.alpha[:2])
    assert bool((rescaled.alpha.diff() <= 0).all())


@pytest.mark.parametrize(("name", "prediction"), FEW)
def test_where_x0_is_clipped_eps_still_makes_up_x_t(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    t = torch.tensor([5, 400, 999])
    x_t, output = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64) * 2
    x0, eps = schedule.to_x0_eps(output, x_t, t, (-1, 1))
    assert x0.abs().max() <= 1
    torch.testing.assert_close(schedule.q_sample(x0, eps, t), x_t)


def test_min_snr_of_hang_et_al():
    t = torch.arange(0, 1000, 111)
    alpha_bar = DiffusionSchedule().alphas_cumprod[t]
    snr = alpha_bar / (1 - alpha_bar)
    for prediction, formula in {
        "eps": snr.clamp(max=5) / snr,
        "x0": snr.clamp(max=5),
        "v": snr.clamp(max=5) / (snr + 1),
    }.items():
        schedule = DiffusionSchedule(prediction=prediction, loss_weighting="min_snr")
        torch.testing.assert_close(schedule.loss_weights(t), formula.float())
    flow = DiffusionSchedule(schedule="rectified_flow", prediction="v", loss_weighting="min_snr")
    share = (t + 1).double() / 1000  # an error of eps - x0 is 1 / sigma times that of x0
    expected = (((1 - share) / share) ** 2).clamp(max=5) * share**2
    torch.testing.assert_close(flow.loss_weights(t), expected.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("name", "prediction"), FEW)
def test_monais_inferer_samples_with_the_schedule_as_ddim_does(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction, clip_range=(-1, 1))
    unet, z_sem, x_T = small_autoencoder().unet, torch.randn(2, 1, 4), torch.randn(2, 1, 8, 8)
    schedule.set_timesteps(7)
    inferer = DiffusionInferer(schedule)
    with torch.no_grad():
        sampled = inferer.sample(x_T, unet, schedule, conditioning=z_sem, mode="crossattn", verbose=False)
        decoded = ddim(Predictor(lambda x, t: unet(x, t, z_sem), schedule, (-1, 1)), x_T, schedule.decoding_levels(7))
    torch.testing.assert_close(sampled, decoded, atol=1e-5, rtol=1e-5)


def test_reversed_step_moves_between_the_same_levels_as_ddim():
    schedule = DiffusionSchedule(prediction="eps", spacing="leading")
    x0 = torch.randn(2, 1, 4, 4)
    schedule.set_timesteps(5)
    levels = schedule.timesteps.flip(0).tolist()
    assert levels[0] == 0  # with leading spacing, the first step of ddim keeps x0 and calls it level 0
    eps, x = torch.randn_like(x0), x0
    for t in levels:
        x, _ = schedule.reversed_step(eps, t, x)
    torch.testing.assert_close(
        x, ddim(Predictor(lambda x, t: eps, schedule), x0, schedule.inversion_levels(5)), atol=1e-4, rtol=1e-4
    )


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


@pytest.mark.parametrize(("name", "prediction"), [*FEW, ("cosine", "v")])
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


@pytest.mark.parametrize(("sampling", "in_the_middle"), [("uniform", (0.29, 0.35)), ("logit_normal", (0.45, 1))])
def test_training_timesteps_cover_the_range_follow_their_generator_and_are_shifted(sampling, in_the_middle):
    def timesteps(shift=1.0, number=1000):
        schedule = DiffusionSchedule(num_train_timesteps=number, timestep_sampling=sampling, timestep_shift=shift)
        return schedule.sample_timesteps(100_000, torch.Generator().manual_seed(0))

    plain, shifted = timesteps(), timesteps(3.0)
    assert torch.equal(plain, timesteps())
    assert 0 <= shifted.min() < shifted.max() <= 999
    counts = torch.bincount(timesteps(number=50), minlength=50)
    assert len(counts) == 50
    assert in_the_middle[0] < counts[17:33].sum() / counts.sum() < in_the_middle[1]
    # the median of both distributions is T / 2: odds of 1, which become odds of 3
    assert plain.double().median() == pytest.approx(500, abs=5)
    assert shifted.double().median() == pytest.approx(750, abs=5)
    assert DiffusionSchedule().stratified_timesteps(10).tolist() == list(range(50, 1000, 100))


def test_the_noise_of_an_image_is_standard_normal_and_the_same_in_every_batch_and_seeds_are_distinct():
    noise = image_noise((1, 32, 32), 0, list(range(20)))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert torch.equal(image_noise((1, 32, 32), 0, [7])[0], noise[7])
    assert seed_of(0, "noise", 1) == seed_of(0, "noise", 1)
    assert len({seed_of(s, r, i) for s in range(10) for r in range(10) for i in range(10)}) == 1000
