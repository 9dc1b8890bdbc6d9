import numpy as np
import pytest

from monai_diffae.latents.twins import near_pairs


@pytest.fixture
def z():
    return np.random.default_rng(0).normal(size=(300, 32)) @ np.diag(np.linspace(0.1, 3, 32))


def test_cases_of_different_patients_are_no_twins(z):
    assert len(near_pairs(z, np.arange(len(z)))) == 0


def test_copies_are_found_whatever_the_scale_of_a_dimension(z):
    copies = z[:100] + 0.01 * z.std(axis=0) * np.random.default_rng(1).normal(size=(100, 32))
    expected = [[i, 300 + i] for i in range(100)]
    for scale in (1.0, np.logspace(-3, 3, 32)):
        assert near_pairs(np.concatenate([z, copies]) * scale, np.arange(400)).tolist() == expected


def test_copies_of_the_same_patient_do_not_count(z):
    patients = np.arange(301)
    patients[300] = 5
    assert len(near_pairs([*z, z[5]], patients)) == 0


def test_a_cohort_in_which_every_case_is_there_twice_has_only_twins(z):
    assert len(near_pairs(np.concatenate([z, z]), np.arange(600))) == 300


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_patients_have_no_twins(z, count):
    assert len(near_pairs(z[:count], np.arange(count))) == 0


def test_a_constant_encoder_gives_no_twins():
    assert len(near_pairs(np.ones((20, 4)), np.arange(20))) == 0
