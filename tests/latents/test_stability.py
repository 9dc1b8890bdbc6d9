from dataclasses import astuple

import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents import stability as stability_module
from monai_diffae.latents.stability import stability


@pytest.fixture
def z():
    return np.random.default_rng(0).normal(size=(60, 16))


def stability_over_all_pairs(x, again, own, others):
    """Ratios and rank-1 by their definition, with masks (N, N) of what counts."""
    compared = [i for i in range(len(x)) if own[i].any() and others[i].any()]
    to_all = {i: np.linalg.norm(x - again[i], axis=1) for i in compared}
    moved, to_other = (np.array([to_all[i][mask[i]].min() for i in compared]) for mask in (own, others))
    usual = np.median(np.concatenate([np.linalg.norm(x[others[i]] - x[i], axis=1) for i in compared]))
    return (*(np.percentile(moved, [50, 90]) / usual), (moved < to_other).mean(), len(compared))


def test_the_same_codes_do_not_move(z):
    measured = stability(z, z, np.arange(60))
    assert (measured.ratio, measured.ratio_90, measured.rank_1, measured.num_cases) == (0, 0, 1, 60)


def test_codes_of_others_are_as_far_as_others(z):
    other = np.random.default_rng(1).normal(size=z.shape)
    measured = stability(z, other, np.arange(60))
    assert measured.ratio == pytest.approx(1, abs=0.05)
    assert measured.rank_1 < 0.1


def test_neither_the_case_itself_nor_its_other_slices_count(z):
    patient = np.arange(60) // 3
    scan = np.arange(60) // 3 * 2 + np.arange(60) % 3 // 2  # of three rows, two are slices of one scan
    z[1::3] = z[::3]
    z[2::3] = z[::3] + 0.01
    measured = stability(z, z, patient, scan)
    assert measured.rank_1 == 1
    assert 0 < measured.ratio < 0.02
    assert measured.num_cases == 60


def test_codes_that_go_far_from_everyone_are_measured_by_how_far_cases_are_apart(z):
    measured = stability(z, z + 1000, np.arange(60))
    assert measured.ratio > 100
    assert measured.rank_1 < 0.5


def test_collapsed_codes_are_one_line():
    with pytest.raises(ConfigError, match="most patients have the same z_sem"):
        stability(np.ones((5, 3)), np.ones((5, 3)), np.arange(5))


def test_without_anything_to_compare_it_is_one_line(z):
    with pytest.raises(ConfigError, match="no case can be compared both"):
        stability(z, z, np.arange(60) // 2, np.arange(60) // 2)
    with pytest.raises(ConfigError, match="no case can be compared both"):
        stability(z, z, np.zeros(60))
    with pytest.raises(ConfigError, match="of as many cases"):
        stability(z, z, np.arange(5))
    with pytest.raises(ConfigError, match="of as many cases"):
        stability(z, z, np.arange(60), slices=np.arange(5))


@pytest.mark.parametrize("at_once", [2**20, 130])
def test_figures_are_those_of_all_pairs_to_the_bit(z, monkeypatch, at_once):
    monkeypatch.setattr(stability_module, "_DISTANCES_AT_ONCE", at_once)
    monkeypatch.setattr(stability_module, "_PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(2)
    patients, scans, slices = (rng.integers(most, size=60) for most in (20, 3, 2))
    z[7] = z[5] = z[3]  # of ties, rounding must not decide
    same = patients[:, None] == patients
    for step in (0, 0.01, 1, 5):
        again = z + step * rng.normal(size=z.shape)
        measured = stability(z, again, patients)
        assert astuple(measured) == stability_over_all_pairs(z, again, np.eye(60, dtype=bool), ~same)
        own = same & (scans[:, None] != scans) & (slices[:, None] == slices)
        assert astuple(stability(z, again, patients, scans, slices)) == stability_over_all_pairs(z, again, own, ~same)
    assert 0 < measured.rank_1 < 1


def test_of_many_pairs_a_sample_says_how_far_patients_are_apart(monkeypatch):
    rng = np.random.default_rng(0)
    z, patients = rng.normal(size=(300, 16)), rng.integers(100, size=300)
    z[patients < 50] += 3  # most pairs are of two kinds of patients
    again = z + 0.3 * rng.normal(size=z.shape)
    every = stability(z, again, patients)
    monkeypatch.setattr(stability_module, "_MAX_PAIRS", 20_000)
    some = stability(z, again, patients)
    assert some.ratio != every.ratio
    assert some.ratio == pytest.approx(every.ratio, rel=0.01)
    assert (some.rank_1, some.num_cases) == (every.rank_1, every.num_cases)
    assert some == stability(z, again, patients)
