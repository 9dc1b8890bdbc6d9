import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.neighbors import nearest_neighbors, p_values
from monai_diffae.latents.outliers import ReferenceCases, outlier_scores
from monai_diffae.latents.statistics import LatentStatistics


@pytest.fixture
def reference():
    return np.random.default_rng(0).normal(size=(120, 6)) * [1, 5, 0.1, 1, 1, 1]


def test_the_scores_are_distances_to_the_nearest_reference_cases(reference):
    new = np.random.default_rng(1).normal(size=(9, 6))
    statistics = LatentStatistics.of(reference)
    nearest = nearest_neighbors(statistics.normalise(new), statistics.normalise(reference), 3)
    scores = outlier_scores(new, reference, k=3, whitened=False)
    np.testing.assert_array_equal(scores.distances, nearest.distances.mean(axis=1))
    own = ReferenceCases.of(reference).own_distances(3, False)
    np.testing.assert_array_equal(scores.p_values, p_values(scores.distances, own, np.zeros(9, bool)))


def test_one_in_twenty_cases_like_the_reference_is_unusual_and_an_odd_one_always():
    shares = []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        reference, new = generator.normal(size=(200, 8)), generator.normal(size=(200, 8))
        shares.append((outlier_scores(new, reference).p_values < 0.05).mean())
        assert outlier_scores(new[:1] + 9, reference).p_values[0] == pytest.approx(1 / 201)
    assert 0.02 < np.mean(shares) < 0.08


def test_scans_of_a_case_s_own_patient_do_not_count(reference):
    groups = [f"p{i}" for i in range(120)]
    copy = outlier_scores(reference[:1], reference, groups=["p0"], reference_groups=groups)
    own = ReferenceCases.of(reference, groups).own_distances(5, True)
    assert copy.distances[0] == own[0]
    assert outlier_scores(reference[:1], reference, reference_groups=groups).distances[0] < own[0]


def test_too_few_reference_cases_are_refused():
    with pytest.raises(ConfigError, match="^k: 5 is not from 1 to 3"):
        outlier_scores([[1.0]], [[1.0], [2.0], [3.0]])
