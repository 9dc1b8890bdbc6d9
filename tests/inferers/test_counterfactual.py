"""The search for the smallest change, against closed forms."""

import numpy as np
import pytest
import torch

from monai_diffae.inferers.counterfactual import autograd, find_change, finite_differences

WEIGHTS = torch.tensor([1.0, -2.0, 2.0])


@pytest.mark.parametrize("gradient", [autograd, finite_differences])
@pytest.mark.parametrize("target", [4.0, -4.0])
def test_the_nearest_point_of_a_plane(gradient, target):
    found = find_change(gradient(lambda u: u @ WEIGHTS + 1), 3, target, largest=5.0)
    expected = WEIGHTS * (target - 1) / 9  # the projection of 0
    np.testing.assert_allclose(found.change, expected, rtol=0.03)
    assert found.reached
    assert found.value == pytest.approx(target, abs=0.11)


def test_the_nearest_point_of_a_curve():
    """x^2 + 4 y^2 = 4 around 0: the nearest points are (0, 1) and (0, -1)."""
    found = find_change(
        autograd(lambda u: (u + torch.tensor([0.01, 0.05])).square() @ torch.tensor([1.0, 4.0])), 2, 4.0, largest=6.0
    )
    assert found.reached
    assert float(found.change.norm()) == pytest.approx(0.95, abs=0.05)


def test_a_wave_that_a_full_step_would_pass_again_and_again():
    found = find_change(autograd(lambda u: torch.tanh(3 * u[:, 0]) + 0.1 * u[:, 1]), 2, 0.9, largest=8.0)
    assert found.reached
    assert float(found.change.norm()) < 0.6


def test_what_cannot_be_reached():
    bounded = find_change(autograd(lambda u: torch.tanh(u[:, 0])), 2, 2.0, largest=3.0)
    assert not bounded.reached
    assert float(bounded.change.norm()) <= 3.0001
    assert bounded.value > 0.9
    flat = find_change(autograd(lambda u: 0 * u.sum(dim=1)), 2, 1.0, largest=3.0)
    assert (flat.reached, flat.is_flat, flat.steps) == (False, True, 1)
    lost = find_change(autograd(lambda u: u[:, 0] * float("nan")), 2, 1.0, largest=3.0)
    assert not lost.reached
    assert lost.is_flat


def test_a_score_that_is_the_target_already():
    found = find_change(autograd(lambda u: u @ WEIGHTS + 1), 3, 1.0, largest=5.0)
    assert found.reached
    assert float(found.change.norm()) == 0
