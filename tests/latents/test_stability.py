import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.stability import stability


@pytest.fixture
def z():
    return np.random.default_rng(0).normal(size=(60, 16))


def own_and_strangers(n):
    own = np.eye(n, dtype=bool)
    return own, ~own


def test_the_same_codes_do_not_move(z):
    found = stability(z, z, *own_and_strangers(60))
    assert (found.ratio, found.ratio_90, found.rank_1, found.num_cases) == (0, 0, 1, 60)


def test_codes_of_strangers_are_as_far_as_strangers(z):
    other = np.random.default_rng(1).normal(size=z.shape)
    found = stability(z, other, *own_and_strangers(60))
    assert found.ratio == pytest.approx(1, abs=0.05)
    assert found.rank_1 < 0.1


def test_neither_the_case_itself_nor_its_other_slices_count(z):
    patient = np.arange(60) // 3
    scan = np.arange(60) // 3 * 2 + np.arange(60) % 3 // 2  # of three rows, two are slices of one scan
    z[1::3] = z[::3]
    z[2::3] = z[::3] + 0.01
    same = patient[:, None] == patient
    found = stability(z, z, same & (scan[:, None] != scan), ~same)
    assert found.rank_1 == 1
    assert 0 < found.ratio < 0.02
    assert found.num_cases == 60


def test_codes_that_go_far_from_everyone_are_measured_by_how_far_cases_are_apart(z):
    found = stability(z, z + 1000, *own_and_strangers(60))
    assert found.ratio > 100
    assert found.rank_1 < 0.5


def test_collapsed_codes_are_one_line():
    with pytest.raises(ConfigError, match="most patients have the same z_sem"):
        stability(np.ones((5, 3)), np.ones((5, 3)), *own_and_strangers(5))


def test_without_anything_to_compare_it_is_one_line(z):
    own, strangers = own_and_strangers(60)
    with pytest.raises(ConfigError, match="no case is seen again"):
        stability(z, z, own & False, strangers)
    with pytest.raises(ConfigError, match="of as many cases"):
        stability(z, z, own[:5], strangers[:5])
