import pytest
import torch

from monai_diffae.diffusion.fixed_point import fixed_point


@pytest.mark.parametrize("slope", [0.9, -0.9, -3.0, 4.0])
def test_a_linear_map_is_solved_though_it_does_not_contract(slope):
    x = fixed_point(lambda x: slope * x + 2, torch.zeros(5), tolerance=1e-12, max_evaluations=5)
    torch.testing.assert_close(x, torch.full((5,), 2 / (1 - slope)))


def test_a_map_of_several_slopes_needs_no_more_than_one_evaluation_each():
    slopes = torch.tensor([-2.0, 0.5, 1.5])
    x = fixed_point(lambda x: slopes * x + 1, torch.zeros(3), tolerance=1e-12, max_evaluations=12)
    torch.testing.assert_close(x, 1 / (1 - slopes), rtol=1e-4, atol=1e-4)


def test_it_stops_at_once_where_the_guess_is_right():
    asked = []
    fixed_point(lambda x: (asked.append(x), x.clone())[1], torch.ones(2, 3), tolerance=0.0, max_evaluations=9)
    assert len(asked) == 1


def test_it_keeps_to_its_evaluations():
    asked = []
    fixed_point(lambda x: (asked.append(x), x + 1)[1], torch.ones(2, 3), tolerance=1e-9, max_evaluations=7)
    assert len(asked) == 7
