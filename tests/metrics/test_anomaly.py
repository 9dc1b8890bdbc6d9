"""Anomaly maps: honest for the cases that they are calibrated with, and for new ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_diffae.latents.neighbors import p_values
from monai_diffae.metrics import anomaly_maps, cross_fitted_maps, highest_mean, residual_spread, smoothed_residuals

FLOOR, SIGMA, FRACTION = 0.1, 1.0, 0.01


def residuals_of_cases(count, seed, size=12):
    """Residuals whose size varies over the image and between cases, as those of real scans do."""
    rng = torch.Generator().manual_seed(seed)
    pattern = torch.linspace(0.1, 1.0, size)[None, None, None, :]
    scale = torch.randn(count, 1, 1, 1, generator=rng).mul(0.3).exp()
    noise = torch.randn(count, 1, size, size, generator=rng)
    return smoothed_residuals(pattern * scale * noise, torch.zeros(count, 1, size, size), SIGMA)


def p_values_of_new_cases(num_calibration, fitted_with_own):
    shares = []
    for trial in range(20):
        residuals = residuals_of_cases(num_calibration, 2 * trial)
        spread = residual_spread(residuals.square().mean(0), FLOOR)
        own = list(range(num_calibration))
        maps = (
            anomaly_maps(residuals, spread, SIGMA) if fitted_with_own
            else cross_fitted_maps(residuals, own, FLOOR, SIGMA)
        )  # fmt: skip
        new = anomaly_maps(residuals_of_cases(100, 2 * trial + 1), spread, SIGMA)
        scores = highest_mean(maps, FRACTION).numpy()
        p = p_values(highest_mean(new, FRACTION).numpy(), scores, np.zeros(100, bool))
        shares.append(p)
    return np.concatenate(shares)


@pytest.mark.parametrize("num_calibration", [20, 40])
def test_p_values_of_new_normal_cases_are_uniform(num_calibration):
    p = p_values_of_new_cases(num_calibration, fitted_with_own=False)
    for level in (0.05, 0.1, 0.25, 0.5):
        possible = np.floor(level * (num_calibration + 1) + 1e-9) / (num_calibration + 1)  # p-values are discrete
        assert possible - 0.08 < np.mean(p <= level) < possible + 0.03


def test_without_cross_fitting_new_cases_look_unusual_too_often():
    assert np.mean(p_values_of_new_cases(8, fitted_with_own=True) <= 1 / 9) > 1 / 9 + 0.05
    assert np.mean(p_values_of_new_cases(8, fitted_with_own=False) <= 1 / 9) < 1 / 9 + 0.03


def test_a_group_is_never_compared_with_itself():
    residuals = residuals_of_cases(6, seed=0)
    groups = [0, 0, 1, 1, 2, 2]
    maps = cross_fitted_maps(residuals, groups, FLOOR, SIGMA)
    without_first = residual_spread(residuals[2:].square().mean(0), FLOOR)
    torch.testing.assert_close(maps[:2], anomaly_maps(residuals[:2], without_first, SIGMA))


@pytest.mark.parametrize("shape", [(3, 2, 9, 10), (3, 1, 8, 9, 10)])
def test_residuals_keep_the_size_and_do_not_depend_on_the_other_images(shape):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    residuals = smoothed_residuals(images, torch.zeros(shape), SIGMA)
    assert residuals.shape == (3, 1, *shape[2:])
    assert torch.equal(residuals[1:2], smoothed_residuals(images[1:2], torch.zeros(shape)[1:2], SIGMA))


def test_noise_averages_out_and_a_lesion_stays():
    lesion = torch.zeros(1, 1, 32, 32)
    lesion[..., 12:20, 12:20] = 1
    noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    residuals = smoothed_residuals(lesion + noise, torch.zeros_like(lesion), 1.5)
    assert residuals[..., 14:18, 14:18].mean() > 3 * residuals[..., :8].mean()


def test_voxels_that_never_vary_do_not_dominate():
    mean_squares = torch.ones(1, 12, 12)
    mean_squares[:, :, :6] = 0
    spread = residual_spread(mean_squares, FLOOR)
    assert spread.min() > 0.2
    assert residual_spread(torch.zeros(1, 12, 12), FLOOR).min() > 0


def test_the_score_is_that_of_the_most_unusual_voxels():
    maps = torch.zeros(2, 1, 10, 10)
    maps[1, 0, 0, 0] = 5
    assert highest_mean(maps, 0.01).tolist() == [0, 5]
    assert highest_mean(maps, 0.02).tolist() == [0, 2.5]
    assert highest_mean(maps, 1e-6).tolist() == [0, 5]
