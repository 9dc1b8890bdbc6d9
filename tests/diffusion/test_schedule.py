import warnings
from itertools import pairwise

import pytest
import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler
from torch import nn

from monai_diffae.diffusion import DiffusionSchedule, ddim
from monai_diffae.errors import ConfigError
from monai_diffae.networks import DenoisingUNet

VP = ["linear_beta", "scaled_linear_beta", "cosine"]
SOME_SIGNAL = [(name, prediction, False) for name in VP for prediction in ("eps", "x0", "v")]
NO_SIGNAL = [(name, prediction, True) for name in VP for prediction in ("x0", "v")]
FLOW = [("rectified_flow", prediction, False) for prediction in ("x0", "v")]


@pytest.mark.parametrize(("name", "prediction", "zero_snr"), SOME_SIGNAL + NO_SIGNAL + FLOW)
def test_the_target_gives_back_x0_and_eps(name, prediction, zero_snr):
    if name == "cosine" and prediction == "eps":
        pytest.skip("see test_eps_is_refused_where_x_T_has_no_signal")
    schedule = DiffusionSchedule(schedule=name, prediction=prediction, zero_terminal_snr=zero_snr)
    t = torch.tensor([0, 1, 10, 500, 900, 998, 999])
    x0, eps = torch.randn(2, 7, 1, 4, 4, dtype=torch.float64)
    x_t = schedule.q_sample(x0, eps, t)
    x0_again, eps_again = schedule.to_x0_eps(schedule.target(x0, eps, t), x_t, t)
    torch.testing.assert_close(x0_again, x0)
    torch.testing.assert_close(eps_again, eps)


@pytest.mark.parametrize("settings", [{"schedule": "rectified_flow"}, {"zero_terminal_snr": True}])
def test_eps_is_refused_where_x_T_has_no_signal(settings):
    with pytest.raises(ConfigError, match=r"eps.*use prediction 'v'"):
        DiffusionSchedule(prediction="eps", **settings)


@pytest.mark.parametrize("name", VP)
def test_zero_terminal_snr_removes_the_signal_of_the_last_level_and_keeps_the_first(name):
    rescaled = DiffusionSchedule(schedule=name, zero_terminal_snr=True)
    plain = DiffusionSchedule(schedule=name)
    assert rescaled.level(999) == (0, 1)
    torch.testing.assert_close(rescaled.alpha[:2], plain.alpha[:2])
    assert bool((rescaled.alpha.diff() <= 0).all())


@pytest.mark.parametrize("name", ["linear_beta", "rectified_flow"])
def test_level_minus_one_is_x0(name):
    schedule = DiffusionSchedule(schedule=name)
    x0, eps = torch.randn(2, 3, 1, 4, 4)
    assert torch.equal(schedule.q_sample(x0, eps, torch.tensor([-1, -1, -1])), x0)


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.float()])
def test_the_tables_stay_in_float64_whatever_the_network_is_cast_to(cast):
    holder = nn.Module()
    holder.layer, holder.schedule = nn.Linear(1, 1), DiffusionSchedule()
    before = holder.schedule.alpha.clone()
    cast(holder)
    cast(holder.schedule)
    assert holder.schedule.alpha.dtype == holder.schedule.sigma.dtype == torch.float64
    assert torch.equal(holder.schedule.alpha, before)


def test_half_precision_images_do_not_change_the_tables():
    schedule = DiffusionSchedule()
    x = torch.randn(2, 1, 4, 4).half()
    noisy = schedule.add_noise(x, torch.randn_like(x), torch.tensor([0, 999]))
    assert noisy.dtype == torch.float16
    assert schedule.alpha.dtype == torch.float64
    assert not schedule.state_dict()


@pytest.mark.parametrize(
    ("name", "prediction"), [("linear_beta", "eps"), ("linear_beta", "v"), ("rectified_flow", "v")]
)
def test_where_x0_is_clipped_eps_still_makes_up_x_t(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    t = torch.tensor([5, 400, 999])
    x_t, output = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64) * 2
    x0, eps = schedule.to_x0_eps(output, x_t, t, (-1, 1))
    assert x0.abs().max() <= 1
    torch.testing.assert_close(schedule.q_sample(x0, eps, t), x_t)


@pytest.mark.parametrize("name", ["linear_beta", "rectified_flow"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_min_snr_weighs_every_parameterisation_by_the_same_error_of_x0(name, prediction):
    if name == "rectified_flow" and prediction == "eps":
        pytest.skip("refused")
    schedule = DiffusionSchedule(schedule=name, prediction=prediction, loss_weighting="min_snr")
    t = torch.tensor([0, 100, 500, 900])
    x0, eps, error_of_output = torch.randn(3, 4, 1, 4, 4, dtype=torch.float64)
    x_t = schedule.q_sample(x0, eps, t)
    target = schedule.target(x0, eps, t)
    x0_hat, _ = schedule.to_x0_eps(target + 1e-3 * error_of_output, x_t, t)
    error_of_x0 = (x0_hat - x0).square().flatten(1).mean(1)
    error = (1e-3 * error_of_output).square().flatten(1).mean(1)
    snr = (schedule.alpha[t + 1] / schedule.sigma[t + 1]) ** 2
    torch.testing.assert_close(
        schedule.loss_weights(t).double() * error, snr.clamp(max=5) * error_of_x0, rtol=1e-5, atol=0
    )


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


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "lin"},
        {"prediction": "epsilon"},
        {"timestep_sampling": "x"},
        {"loss_weighting": "x"},
        {"spacing": "x"},
    ],
)
def test_unknown_names_are_refused_and_the_known_ones_are_listed(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is .*choose one of"):
        DiffusionSchedule(**wrong)


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_training_timesteps_cover_the_range_and_follow_their_generator(sampling):
    schedule = DiffusionSchedule(num_train_timesteps=50, timestep_sampling=sampling)
    t = schedule.sample_timesteps(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(t, schedule.sample_timesteps(20_000, torch.Generator().manual_seed(0)))
    counts = torch.bincount(t, minlength=50).float()
    assert len(counts) == 50
    middle_share = counts[17:33].sum() / counts.sum()
    assert middle_share > 0.45 if sampling == "logit_normal" else 0.29 < middle_share < 0.35


def test_stratified_timesteps_are_one_from_each_part():
    t = DiffusionSchedule().stratified_timesteps(10)
    assert t.tolist() == list(range(50, 1000, 100))


def _unet():
    torch.manual_seed(0)
    unet = DenoisingUNet(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8).eval()
    nn.init.normal_(unet.head[-1].weight, std=0.1)
    return unet


@pytest.mark.parametrize(
    ("name", "prediction"), [("linear_beta", "eps"), ("linear_beta", "v"), ("rectified_flow", "v")]
)
def test_monais_inferer_samples_with_the_schedule_as_ddim_does(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction, clip_range=(-1, 1))
    unet, z_sem, x_T = _unet(), torch.randn(2, 1, 4), torch.randn(2, 1, 8, 8)
    schedule.set_timesteps(7)
    inferer = DiffusionInferer(schedule)
    with torch.no_grad():
        sampled = inferer.sample(x_T, unet, schedule, conditioning=z_sem, mode="crossattn", verbose=False)
        decoded = ddim(lambda x, t: unet(x, t, z_sem), schedule, x_T, schedule.decoding_levels(7), clip_range=(-1, 1))
    torch.testing.assert_close(sampled, decoded, atol=1e-5, rtol=1e-5)


def test_monais_inferer_trains_with_the_schedule():
    schedule, unet = DiffusionSchedule(), _unet()
    x0, noise, t = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    z_sem = torch.randn(2, 4)
    output = DiffusionInferer(schedule)(x0, unet, noise, t, condition=z_sem)
    torch.testing.assert_close(output, unet(schedule.q_sample(x0, noise, t), t, z_sem))
    assert len(schedule.alphas_cumprod) == 1000


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
        x, ddim(lambda x, t: eps, schedule, x0, schedule.inversion_levels(5)), atol=1e-4, rtol=1e-4
    )


def test_a_level_that_set_timesteps_did_not_choose_is_refused():
    schedule = DiffusionSchedule()
    schedule.set_timesteps(5)
    with pytest.raises(ConfigError, match="timestep 3 is not one of the levels"):
        schedule.step(torch.zeros(1, 1, 4, 4), 3, torch.zeros(1, 1, 4, 4))


def test_monais_ddim_scheduler_still_has_the_defects_that_the_schedule_avoids():
    """If this fails, MONAI has been corrected, and the schedule's own levels are no longer needed."""
    scheduler = DDIMScheduler(1000, clip_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(5)
    x = torch.zeros(1, 1, 4, 4)
    levels = scheduler.timesteps.tolist()
    # 1. the levels that it chooses are further apart than its steps
    step_size = 1000 // 5
    gaps = {int(a - b) for a, b in pairwise(levels)}
    assert gaps != {step_size}
    # 2. inversion fails on the last of its own levels
    with pytest.raises(IndexError):
        scheduler.reversed_step(x, int(levels[0]), x)
    # 3. one call in half precision changes the table's dtype for all later calls
    scheduler.add_noise(x.half(), x.half(), torch.tensor([5]))
    assert scheduler.alphas_cumprod.dtype == torch.float16


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


@pytest.mark.parametrize("shift", [0, -1.0, float("nan"), float("inf"), "2"])
def test_an_invalid_timestep_shift_is_refused(shift):
    with pytest.raises(ConfigError, match="timestep_shift is"):
        DiffusionSchedule(timestep_shift=shift)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine", "beta_start": 0.1}, "beta_start: the schedule cosine takes s"),
        ({"schedule": "linear_beta", "nope": 1}, "nope: the schedule linear_beta takes beta_start, beta_end"),
        ({"schedule": "rectified_flow", "beta_end": 1}, "beta_end: the schedule rectified_flow takes no such argument"),
    ],
)
def test_arguments_that_a_schedule_does_not_take_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionSchedule(**settings)
