from itertools import pairwise

import pytest
import torch
from gaussian import KINDS, STD, curved, exact

from monai_diffae.diffusion import DiffusionSchedule, adams, ddim, implicit_inversion, refined_inversion
from monai_diffae.diffusion.fixed_point import fixed_point
from monai_diffae.errors import ConfigError

FEW_KINDS = [("linear_beta", "eps"), ("rectified_flow", "v")]


def data(*shape, seed=0):
    return STD * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def error(a, b):
    return float((a - b).abs().mean())


@pytest.mark.parametrize(("name", "prediction"), FEW_KINDS)
def test_the_papers_round_trip_error_falls_as_one_over_steps(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction, spacing="trailing")
    x0, errors = data(2, 1, 4, 4), []
    for steps in (20, 40, 80, 160):
        x_T = ddim(curved(schedule), schedule, x0, schedule.inversion_levels(steps))
        errors.append(error(ddim(curved(schedule), schedule, x_T, schedule.decoding_levels(steps)), x0))
    ratios = [a / b for a, b in pairwise(errors)]
    assert errors[-1] < 0.02
    assert all(1.5 < ratio < 3 for ratio in ratios), (errors, ratios)


@pytest.mark.parametrize(("name", "prediction"), FEW_KINDS)
def test_twenty_and_twenty_evaluations_beat_the_papers_250_and_100(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    denoise, x0 = curved(schedule), data(2, 1, 4, 4, 4)
    x_T = ddim(denoise, schedule, x0, schedule.paper_inversion_levels(250, "leading"))
    papers = error(ddim(denoise, schedule, x_T, schedule.decoding_levels(100, "leading")), x0)
    x_T = implicit_inversion(denoise, schedule, x0, schedule.inversion_levels(20))
    assert error(adams(denoise, schedule, x_T, schedule.decoding_levels(20)), x0) < papers / 3


@pytest.mark.parametrize(("name", "prediction"), FEW_KINDS)
def test_with_many_evaluations_it_is_the_inverse_of_ddim_to_rounding(name, prediction):
    schedule = DiffusionSchedule(schedule=name, prediction=prediction)
    denoise, x0 = curved(schedule), data(2, 1, 4, 4)
    errors = []
    for evaluations in (20, 60, 600):
        x_T = implicit_inversion(
            denoise, schedule, x0, schedule.inversion_levels(20), num_evaluations=evaluations, order=1
        )
        errors.append(error(ddim(denoise, schedule, x_T, schedule.decoding_levels(20)), x0))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12


def test_x_T_of_data_is_standard_noise():
    for name, prediction in KINDS:
        schedule = DiffusionSchedule(schedule=name, prediction=prediction)
        x_T = implicit_inversion(exact(schedule), schedule, data(500, 1, 4, 4), schedule.inversion_levels(20))
        assert x_T.std() == pytest.approx(1, abs=0.02), (name, prediction)


def test_evaluations_beyond_one_per_step_go_to_the_cleanest_levels():
    schedule = DiffusionSchedule()
    evaluated = []

    def denoise(x, t):
        evaluated.append(int(t[0]))
        return curved(schedule)(x, t)

    levels = schedule.inversion_levels(4)
    implicit_inversion(denoise, schedule, data(1, 1, 4, 4), levels, num_evaluations=10)
    counts = [3, 3, 2, 2]
    assert evaluated == [t for t, count in zip(levels[1:], counts, strict=True) for _ in range(count)]
    with pytest.raises(ConfigError, match="num_evaluations is 3; give at least 4, one for each step"):
        implicit_inversion(denoise, schedule, data(1, 1, 4, 4), levels, num_evaluations=3)
    with pytest.raises(ConfigError, match="implicit_inversion needs rising levels"):
        implicit_inversion(denoise, schedule, data(1, 1, 4, 4), [5, 3, -1])


def test_a_clipped_round_trip_reproduces_the_image_too():
    for name, prediction in KINDS:
        schedule = DiffusionSchedule(schedule=name, prediction=prediction)
        x0 = data(2, 1, 4, 4).clamp(-1, 1)
        clip = {"clip_range": (-1.0, 1.0)}
        x_T = implicit_inversion(curved(schedule), schedule, x0, schedule.inversion_levels(20), **clip)
        assert error(adams(curved(schedule), schedule, x_T, schedule.decoding_levels(20), **clip), x0) < 0.01


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
    denoise, levels = two_modes(schedule), schedule.inversion_levels(20)
    signs = data(4, 1, 8, 8, seed=1).sign()
    images = 0.7 * signs + 0.15 / STD * data(4, 1, 8, 8)

    def decode(x_T):
        return solver(denoise, schedule, x_T, schedule.decoding_levels(20))

    plain = decode(implicit_inversion(denoise, schedule, images, levels, order=order))
    errors = (plain - images).square().mean(dim=(1, 2, 3))
    assert errors.max() > 5e-4
    for x0 in images[errors > 1e-4].split(1):
        x_T, decoded = refined_inversion(denoise, decode, schedule, x0, levels, tolerance=1e-4, order=order)
        assert (decoded - x0).square().mean() < 1e-4
        torch.testing.assert_close(decode(x_T), decoded)


def test_a_bound_on_the_evaluations_of_a_refinement_holds_and_loses_nothing_that_it_allows():
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
    network, levels = two_modes(schedule), schedule.inversion_levels(20)
    num_evaluations = 0

    def denoise(x, t):
        nonlocal num_evaluations
        num_evaluations += 1
        return network(x, t)

    def decode(x_T):
        return adams(denoise, schedule, x_T, schedule.decoding_levels(20))

    def refine(max_evaluations, tolerance=1e-7):
        nonlocal num_evaluations
        num_evaluations = 0
        return refined_inversion(
            denoise, decode, schedule, x0, levels, tolerance=tolerance,
            max_evaluations=max_evaluations, decode_evaluations=20,
        )  # fmt: skip

    x0 = 0.7 * data(1, 1, 8, 8, seed=1).sign() + 0.15 / STD * data(1, 1, 8, 8)
    unbounded, in_full = refine(None), num_evaluations
    errors = {}
    for bound in (80, 81, 163, 300, in_full):
        x_T, decoded = refine(bound)
        assert bound - 60 < num_evaluations <= bound  # what remains is less than another sweep
        torch.testing.assert_close(decode(x_T), decoded)
        errors[bound] = float((decoded - x0).square().mean())
    assert errors[300] < errors[80] / 10
    assert all(torch.equal(*pair) for pair in zip(refine(in_full + 1000), unbounded, strict=True))
    assert refine(79) is None
    assert num_evaluations == 0


# -- fixed points -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.9, -3.0])
def test_a_linear_map_is_solved_even_if_it_is_no_contraction(slope):
    x = fixed_point(lambda x: slope * x + 2, torch.zeros(5), tolerance=1e-12, max_evaluations=5)
    torch.testing.assert_close(x, torch.full((5,), 2 / (1 - slope)))


def test_a_map_of_several_slopes_is_solved():
    slopes = torch.tensor([-2.0, 0.5, 1.5])
    x = fixed_point(lambda x: slopes * x + 1, torch.zeros(3), tolerance=1e-12, max_evaluations=12)
    torch.testing.assert_close(x, 1 / (1 - slopes), rtol=1e-4, atol=1e-4)


def test_it_stops_after_one_evaluation_if_the_guess_is_right_and_after_the_most_evaluations():
    evaluated = []
    fixed_point(lambda x: (evaluated.append(x), x.clone())[1], torch.ones(2, 3), tolerance=0.0, max_evaluations=9)
    assert len(evaluated) == 1
    evaluated.clear()
    fixed_point(lambda x: (evaluated.append(x), x + 1)[1], torch.ones(2, 3), tolerance=1e-9, max_evaluations=7)
    assert len(evaluated) == 7
