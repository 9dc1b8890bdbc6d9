import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.features import FeatureSet, intensity_statistics


def test_pca_is_fitted_to_the_training_cases_of_a_fold():
    images = np.random.default_rng(1).normal(size=(30, 1, 4, 4)).astype(np.float32)
    changed = images.copy()
    changed[20:] *= 50
    train = np.arange(20)
    first, second = (FeatureSet.pca(x, 3).extract(train) for x in (images, changed))
    np.testing.assert_allclose(first[:20], second[:20], atol=1e-5)
    assert not np.allclose(first, FeatureSet.pca(images, 3).extract(train + 10), atol=0.1)


def test_intensity_statistics_are_moments_and_deciles():
    images = np.random.default_rng(2).normal(3, 2, size=(2, 2, 50, 50))
    statistics = intensity_statistics(images)
    assert statistics.shape == (2, 26)
    np.testing.assert_allclose(statistics[:, :2], [[3, 3]] * 2, atol=0.15)
    np.testing.assert_allclose(statistics[0, 2 * 8], np.median(images[0, 0]))
    assert np.isfinite(intensity_statistics(np.zeros((1, 1, 4, 4)))).all()


def test_values_that_are_not_finite_matter_only_for_cases_that_have_the_features():
    values = np.array([[1.0], [np.nan]])
    assert FeatureSet.from_values("f", values, np.array([True, False])).columns == ()
    with pytest.raises(ConfigError, match="^f: the features of 1 cases contain values that are missing, infinite or"):
        FeatureSet.from_values("f", values)
    with pytest.raises(ConfigError, match="^f: has no features"):
        FeatureSet.from_values("f", np.zeros((2, 0)))
