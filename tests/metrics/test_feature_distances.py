import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import FIDMetric
from scipy.linalg import sqrtm

from monai_diffae.errors import ConfigError
from monai_diffae.metrics import frechet_distance, kernel_distance, precision_and_recall


def exact_sample(rng, mean, covariance, num):
    """A sample whose mean and covariance are exactly these."""
    z = rng.normal(size=(num, len(mean)))
    z -= z.mean(axis=0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return z @ np.linalg.cholesky(covariance).T + mean


@given(seed=st.integers(0, 1000))
def test_the_frechet_distance_of_gaussians_in_closed_form(seed):
    rng = np.random.default_rng(seed)
    means, stds = rng.normal(size=(2, 5)), rng.uniform(0.5, 2, size=(2, 5))
    a, b = (exact_sample(rng, mean, np.diag(std**2), 40) for mean, std in zip(means, stds, strict=True))
    expected = np.square(means[0] - means[1]).sum() + np.square(stds[0] - stds[1]).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_correlated_features_as_by_the_root_of_the_matrix_and_by_monai():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 6, 6))
    a, b = (exact_sample(rng, rng.normal(size=6), root @ root.T, 50) for root in roots)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)
    try:
        of_monai = float(FIDMetric()(torch.from_numpy(a), torch.from_numpy(b)))
    except (TypeError, ValueError):  # MONAI 1.6.1 unpacks two results of scipy's sqrtm, which returns one since 1.18
        pytest.skip("MONAI's FID does not run with this SciPy")
    assert frechet_distance(a, b) == pytest.approx(of_monai, abs=1e-4)


def test_fewer_samples_than_features():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 8, 30))
    padded = [np.concatenate([z, np.zeros((len(z), 4))], axis=1) for z in (a, b)]
    assert frechet_distance(*padded) == pytest.approx(frechet_distance(a, b))
    directions, _ = np.linalg.qr(np.concatenate([a, b]).T)  # a basis of the 16 dimensions in which the samples lie
    assert frechet_distance(a @ directions, b @ directions) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_the_kernel_distance_is_that_of_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 12)), rng.normal(size=(30, 12)) + 0.3
    assert kernel_distance(a, b) == pytest.approx(float(kid.poly_mmd(*map(torch.from_numpy, (a, b)))), abs=1e-4)


def test_the_kernel_distance_is_unbiased():
    rng = np.random.default_rng(0)
    values = [kernel_distance(rng.normal(size=(12, 8)), rng.normal(size=(9, 8))) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)


def test_precision_and_recall_by_brute_force():
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(40, 3)), rng.normal(size=(30, 3)) * 1.5

    def covered(samples, others):
        radii = [sorted(np.linalg.norm(others - center, axis=1))[3] for center in others]
        inside = [any(np.linalg.norm(s - c) <= r for c, r in zip(others, radii, strict=True)) for s in samples]
        return np.array(inside, float)

    realistic, is_covered = precision_and_recall(real, made)
    np.testing.assert_array_equal(realistic, covered(made, real))
    np.testing.assert_array_equal(is_covered, covered(real, made))
    assert 0 < realistic.mean() < 1


def test_a_mode_that_is_missing_lowers_recall_and_a_wrong_one_precision():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(50, 2)), rng.normal(size=(50, 2)) + 100
    both = np.concatenate([left, right])
    missing = [each.mean() for each in precision_and_recall(both, left + 0.01)]
    wrong = [each.mean() for each in precision_and_recall(left, both)]
    assert missing == pytest.approx([1, 0.5], abs=0.1)
    assert wrong == pytest.approx([0.5, 1], abs=0.1)


def test_samples_that_cannot_be_compared():
    with pytest.raises(ConfigError, match="features: has the shape"):
        frechet_distance(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ConfigError, match="features: 3 cases are too few; 4 are the least"):
        precision_and_recall(np.zeros((3, 3)), np.zeros((8, 3)))
