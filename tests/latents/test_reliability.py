"""Reliability against pingouin, statsmodels and closed forms; ComBat against location and scale."""

import numpy as np
import pandas as pd
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents import reliability
from monai_diffae.latents.harmonization import harmonized

RNG = np.random.default_rng(0)
PATIENTS, SCANNERS = np.repeat(np.arange(40), 3), np.tile(np.arange(3), 40)
SCANS = RNG.normal(size=(40, 1, 4)) + RNG.normal(size=(40, 3, 4)) + np.array([0, 1, -0.5])[:, None]


def as_frame(values):
    return pd.DataFrame({"patient": PATIENTS, "scanner": SCANNERS, "value": values})


def test_icc_and_intervals_equal_pingouins():
    pingouin = pytest.importorskip("pingouin")
    ours = reliability.intraclass_correlations(SCANS)
    for d in range(4):
        rows = pingouin.intraclass_corr(as_frame(SCANS[..., d].ravel()), "patient", "scanner", "value")
        for name, kind in {"icc2": 1, "icc3": 2}.items():  # their names differ between versions
            row = rows.iloc[kind]
            assert ours[name][d] == pytest.approx(row["ICC"], abs=1e-9)
            ends = [ours[f"{name}_low"][d], ours[f"{name}_high"][d]]
            assert ends == pytest.approx(list(row.filter(like="CI95").iloc[0]), abs=0.006)  # it rounds to two digits


def test_equal_repeats_are_reliable_and_constants_have_no_reliability():
    same = np.repeat(RNG.normal(size=(9, 1, 1)), 2, axis=1)
    assert all(value[0] == 1 for value in reliability.intraclass_correlations(same).values())
    assert all(np.isnan(value).all() for value in reliability.intraclass_correlations(np.ones((9, 2, 1))).values())


@pytest.mark.parametrize("share", [1, 0.8])
def test_components_of_variance_equal_restricted_maximum_likelihood(share):
    """To the precision of its optimiser if the design is balanced, and about if scans are missing."""
    api = pytest.importorskip("statsmodels.formula.api")
    values, keep = SCANS.reshape(120, 4), np.random.default_rng(1).random(120) <= share
    ours = reliability.variance_components(values[keep], PATIENTS[keep], SCANNERS[keep])
    parts = {"patient": "0 + C(patient)", "scanner": "0 + C(scanner)"}
    model = api.mixedlm("value ~ 1", as_frame(values[:, 0])[keep].assign(one=1), groups="one", vc_formula=parts,
                        re_formula="0").fit()  # fmt: skip
    expected = np.array([*model.vcomp, model.scale])
    assert reliability.variance_shares(ours)[:, 0] == pytest.approx(
        expected / expected.sum(), abs=1e-3 if share == 1 else 0.03
    )


def test_components_are_unbiased_with_missing_scans_and_more_scans_per_visit():
    generator, found = np.random.default_rng(0), []
    for _ in range(200):
        patients, scanners = generator.integers(12, size=40), generator.integers(5, size=40)
        values = generator.normal(size=(12, 1))[patients] + 2 * generator.normal(size=(5, 1))[scanners]
        parts = reliability.variance_components(values + 0.5 * generator.normal(size=(40, 1)), patients, scanners)
        found.append(parts[:, 0])
    error = np.std(found, axis=0) / len(found) ** 0.5
    assert (np.abs(np.mean(found, axis=0) - [1, 4, 0.25]) < 3 * error).all()


@pytest.mark.parametrize(("estimate", "message"), [
    (lambda x: reliability.variance_components(x, np.arange(8) // 2, np.arange(8) // 4), "no patient was scanned on"),
    (lambda x: reliability.variance_components(x, np.arange(8) // 2, np.zeros(8)), "no patient was scanned on"),
    (lambda x: reliability.variance_components(x, np.arange(8)), "none has two scans"),
    (lambda x: reliability.complete_design(list("aabc"), [1, 2, 1, 1]), "fewer than two patients have two"),
    (lambda x: reliability.complete_design(np.arange(50) // 2, np.arange(50)), "there are 50 different ones"),
])  # fmt: skip
def test_designs_that_cannot_tell_patients_and_scanners_apart_are_named(estimate, message):
    with pytest.raises(ConfigError, match=message):
        estimate(RNG.normal(size=(8, 2)))


def test_the_interval_of_the_shares_holds_the_truth_about_as_often_as_it_says():
    generator, hits = np.random.default_rng(0), []
    for _ in range(20):
        values = generator.normal(size=(40, 5))[PATIENTS] + generator.normal(size=(120, 5))
        _, low, high = reliability.total_shares(values, PATIENTS)
        hits.append(low[0] <= 0.5 <= high[0])
    assert np.mean(hits) > 0.85


def test_fingerprinting_by_chance_and_without_scans_of_the_same_visit():
    patients, repeats = np.repeat(np.arange(60), 4), np.tile([1, 1, 2, 2], 60)
    z = np.random.default_rng(0).normal(size=(240, 5))
    z[1::2] = z[::2] + 1e-6  # both scans of a visit are the same, which shows nothing
    found = reliability.fingerprinting(z, patients, repeats)
    assert found.low <= found.chance <= found.high
    assert found.chance == pytest.approx(2 / 238)


def test_harmonizing_equals_shifting_and_scaling():
    """Where scanners only shift and scale, that is undone."""
    scanners = np.arange(9000) % 3
    shown = RNG.normal(size=(3000, 6))[np.arange(9000) // 3]  # every patient on every scanner
    values = shown * np.array([1, 2, 0.5])[scanners][:, None] + 3.0 * scanners[:, None]
    fitted = np.arange(6000)
    within = values - np.stack([values[fitted][scanners[fitted] == k].mean(axis=0) for k in range(3)])[scanners]
    pooled = np.sqrt(np.square(within[fitted]).mean(axis=0))
    stds = np.stack([within[fitted][scanners[fitted] == k].std(axis=0) for k in range(3)])[scanners]
    expected = values[fitted].mean(axis=0) + within / stds * pooled
    ours = harmonized(values, scanners, np.empty((9000, 0)), fitted)
    assert np.abs(ours - expected).max() < 1e-9 * pooled.max()
    scaled = harmonized(values * 1e-6, scanners, np.empty((9000, 0)), fitted)
    np.testing.assert_allclose(scaled, ours * 1e-6, rtol=1e-6, atol=1e-12)


def test_means_variances_and_covariances_of_scanners_become_equal():
    rng, scanners = np.random.default_rng(0), np.arange(3000) % 3
    mixes, shifts = np.eye(6) + 0.15 * rng.normal(size=(3, 6, 6)), rng.normal(size=(3, 6))
    values = np.einsum("nd,nde->ne", rng.normal(size=(3000, 6)), mixes[scanners]) + shifts[scanners]
    even = harmonized(values, scanners, np.empty((3000, 0)), np.arange(2400))[:2400]
    parts = [even[scanners[:2400] == k] for k in range(3)]
    for k in (1, 2):
        assert parts[k].mean(axis=0) == pytest.approx(parts[0].mean(axis=0))
        assert parts[k].std(axis=0) == pytest.approx(parts[0].std(axis=0))
    pooled = np.cov(even.T)
    assert max(np.abs(np.cov(part.T) - pooled).max() for part in parts) < 0.03 * np.abs(pooled).max()
    shown, noise = rng.normal(size=(2, 3000, 9))
    even = harmonized(np.hstack([shown, shown + 3e-5 * noise]), scanners, np.empty((3000, 0)), np.arange(2400))
    assert (even[:, 9:] - even[:, :9]).std() == pytest.approx(3e-5, rel=0.1)  # small components keep their digits


def test_principal_components_are_unmixed_where_they_vary_most():
    scanners, stds = np.arange(96) % 3, 0.5 ** np.arange(20)
    values = np.random.default_rng(0).normal(size=(96, 20))
    values[scanners == 0, 1] += values[scanners == 0, 0]  # only here they go together
    even = [
        harmonized(values * stds, scanners, np.empty((96, 0)), np.arange(96), common_scale=common)
        for common in (True, False)
    ]
    close, far = (np.corrcoef(x[scanners == 0, :2].T)[0, 1] - np.corrcoef(x[scanners == 1, :2].T)[0, 1] for x in even)
    assert abs(close) < 0.05 < 0.2 < far  # of 60 seeds, at most .03 and at least .21


def test_what_covariates_explain_is_kept_and_constants_are_untouched():
    scanners, ages = np.arange(600) % 2, RNG.normal(size=600)
    ages += 2.0 * scanners  # the patients of a scanner are older
    values = np.stack([ages + 5.0 * scanners + 0.1 * RNG.normal(size=600), np.full(600, 7.0)], axis=1)
    kept = harmonized(values, scanners, ages[:, None], np.arange(400))
    assert np.corrcoef(kept[:, 0], ages)[0, 1] > 0.99
    assert (kept[:, 1] == 7).all()
    with pytest.raises(ConfigError, match="'1' has 1 training case, at least 10 are"):
        harmonized(values, scanners, ages[:, None], [*np.arange(0, 600, 2).tolist(), 1])
