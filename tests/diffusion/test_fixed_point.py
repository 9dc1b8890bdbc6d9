import pytest
import torch

from monai_diffae.diffusion.fixed_point import fixed_point


@pytest.mark.parametrize("slope", [0.9, -0.9, -3.0, 4.0])
def test_a_linear_map_is_solved_even_if_it_is_no_contraction(slope):
    x = fixed_point(lambda x: slope * x + 2, torch.zeros(5), tolerance=1e-12, max_evaluations=5)
    torch.testing.assert_close(x, torch.full((5,), 2 / (1 - slope)))


def test_a_map_of_several_slopes_is_solved():
    slopes = torch.tensor([-2.0, 0.5, 1.5])
    x = fixed_point(lambda x: slopes * x + 1, torch.zeros(3), tolerance=1e-12, max_evaluations=12)
    torch.testing.assert_close(x, 1 / (1 - slopes), rtol=1e-4, atol=1e-4)


def test_it_stops_after_one_evaluation_if_the_guess_is_right():
    evaluated = []
    fixed_point(lambda x: (evaluated.append(x), x.clone())[1], torch.ones(2, 3), tolerance=0.0, max_evaluations=9)
    assert len(evaluated) == 1


def test_it_stops_after_the_most_evaluations():
    evaluated = []
    fixed_point(lambda x: (evaluated.append(x), x + 1)[1], torch.ones(2, 3), tolerance=1e-9, max_evaluations=7)
    assert len(evaluated) == 7
