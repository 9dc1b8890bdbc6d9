import pytest
import torch
from gaussian import KINDS, STD, curved, exact, noise

from monai_diffae.diffusion import DiffusionSchedule, Predictor, adams, ddim, implicit_inversion, refined_inversion
from monai_diffae.errors import ConfigError

FEW_KINDS = [("linear_beta", "eps"), ("rectified_flow", "v")]


def data(*shape, seed=0):
    return STD * noise(*shape, seed=seed)


def error(a, b):
    return float((a - b).abs().mean())


@pytest.mark.parametrize(("name", "prediction"), FEW_KINDS)
def test_twenty_and_twenty_evaluations_beat_the_papers_250_and_100(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    denoise, x0 = curved(schedule), data(2, 1, 4, 4, 4)
    x_T = ddim(Predictor(denoise, schedule), x0, schedule.paper_inversion_levels(250, "leading"))
    papers = error(ddim(Predictor(denoise, schedule), x_T, schedule.decoding_levels(100, "leading")), x0)
    x_T = implicit_inversion(Predictor(denoise, schedule), x0, schedule.inversion_levels(20))
    assert error(adams(Predictor(denoise, schedule), x_T, schedule.decoding_levels(20)), x0) < papers / 3


@pytest.mark.parametrize(("name", "prediction"), FEW_KINDS)
def test_with_many_evaluations_it_is_the_inverse_of_ddim_to_rounding(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    denoise, x0 = curved(schedule), data(2, 1, 4, 4)
    errors = []
    for evaluations in (20, 60, 600):
        x_T = implicit_inversion(
            Predictor(denoise, schedule), x0, schedule.inversion_levels(20), num_evaluations=evaluations, order=1
        )
        errors.append(error(ddim(Predictor(denoise, schedule), x_T, schedule.decoding_levels(20)), x0))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12


def test_x_T_of_data_is_standard_noise():
    for name, prediction in KINDS:
        schedule = DiffusionSchedule(schedule=name, prediction=prediction)
        x_T = implicit_inversion(
            Predictor(exact(schedule), schedule), data(500, 1, 4, 4), schedule.inversion_levels(20)
        )
        assert x_T.std() == pytest.approx(1, abs=0.02), (name, prediction)


def test_evaluations_beyond_one_per_step_go_to_the_cleanest_levels():
    schedule = DiffusionSchedule()
    evaluated = []

    def denoise(x, t):
        evaluated.append(int(t[0]))
        return curved(schedule)(x, t)

    levels = schedule.inversion_levels(4)
    implicit_inversion(Predictor(denoise, schedule), data(1, 1, 4, 4), levels, num_evaluations=10)
    counts = [3, 3, 2, 2]
    assert evaluated == [t for t, count in zip(levels[1:], counts, strict=True) for _ in range(count)]
    with pytest.raises(ConfigError, match="implicit_inversion needs rising levels"):
        implicit_inversion(Predictor(denoise, schedule), data(1, 1, 4, 4), [5, 3, -1])


def test_a_clipped_round_trip_reproduces_the_image_too():
    for name, prediction in KINDS:
        schedule = DiffusionSchedule(schedule=name, prediction=prediction)
        x0 = data(2, 1, 4, 4).clamp(-1, 1)
        predict = Predictor(curved(schedule), schedule, (-1.0, 1.0))
        x_T = implicit_inversion(predict, x0, schedule.inversion_levels(20))
        assert error(adams(predict, x_T, schedule.decoding_levels(20)), x0) < 0.01


def two_modes(schedule, mode=0.7, std=0.15):
    """The best possible network for data half from N(mode, std^2) and half from N(-mode, std^2)."""

    def denoise(x, t):
        alpha, sigma = schedule.coefficients(t, x)
        variance = alpha**2 * std**2 + sigma**2
        means = [m + alpha * std**2 / variance * (x - alpha * m) for m in (mode, -mode)]
        upper = torch.sigmoid(2 * alpha * mode * x / variance)
        x0 = upper * means[0] + (1 - upper) * means[1]
        return schedule.target(x0, (x - alpha * x0) / sigma, t)

    return denoise


@pytest.mark.parametrize(
    ("name", "prediction", "solver", "order"),
    [("rectified_flow", "v", adams, 3), ("cosine", "v", adams, 3), ("rectified_flow", "v", ddim, 1)],
)
def test_a_refined_inversion_is_exact_where_a_small_error_in_x_T_changes_the_image(name, prediction, solver, order):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    predict, levels = Predictor(two_modes(schedule), schedule), schedule.inversion_levels(20)
    signs = data(4, 1, 8, 8, seed=1).sign()
    images = 0.7 * signs + 0.15 / STD * data(4, 1, 8, 8)

    def decode(x_T):
        return solver(predict, x_T, schedule.decoding_levels(20))

    plain = decode(implicit_inversion(predict, images, levels, order=order))
    errors = (plain - images).square().mean(dim=(1, 2, 3))
    assert errors.max() > 5e-4
    for x0 in images[errors > 1e-4].split(1):
        x_T, decoded = refined_inversion(predict, decode, x0, levels, tolerance=1e-4, order=order)
        assert (decoded - x0).square().mean() < 1e-4
        torch.testing.assert_close(decode(x_T), decoded)
