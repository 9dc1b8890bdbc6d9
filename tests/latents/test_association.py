"""Regressions with errors clustered by patient: statsmodels, a formula written out, and null variables."""

import numpy as np
import pytest
from scipy import stats

from monai_diffae.errors import ConfigError
from monai_diffae.latents.association import inflation, linear_associations, logistic_associations, q_values
from monai_diffae.latents.neighbors import numbered_groups

RNG = np.random.default_rng(0)
N = 120
GROUPS = RNG.integers(0, 40, N)
AGE, SITE = RNG.normal(60, 9, N), np.eye(3)[RNG.integers(0, 3, N)][:, 1:]
COMPONENTS = RNG.normal(size=(N, 3)) + 0.04 * AGE[:, None] + RNG.normal(size=(40, 3))[GROUPS]
SEX = (RNG.random(N) < stats.norm.cdf(COMPONENTS[:, 0] - COMPONENTS[:, 0].mean())).astype(float)


def test_effects_are_those_of_statsmodels_and_errors_of_single_cases_are_hc2():
    sm = pytest.importorskip("statsmodels.api")
    fits = [sm.OLS(y, np.column_stack([AGE, np.ones(N), SITE])).fit(cov_type="HC2") for y in COMPONENTS.T]
    ours = linear_associations(COMPONENTS, AGE, {"site": SITE}, np.arange(N))
    np.testing.assert_allclose(ours.effect, [fit.params[0] for fit in fits], rtol=1e-8)
    half = (ours.high - ours.low) / 2 / [fit.bse[0] for fit in fits]
    np.testing.assert_allclose(half, half[0], rtol=1e-8)


@pytest.mark.parametrize("num_columns", [1, 2])
def test_small_sample_corrections_are_the_published_formulas(num_columns):
    variable, others = (AGE[:, None], SITE) if num_columns == 1 else (SITE, AGE[:, None])
    x = np.column_stack([variable, np.ones(N), others])
    inverse = np.linalg.inv(x.T @ x)
    left = np.eye(N) - x @ inverse @ x.T
    p = []  # [G, Q, N]: the outcome becomes the scores of each patient
    for group in np.unique(GROUPS):
        rows = np.flatnonzero(group == GROUPS)
        values, vectors = np.linalg.eigh(left[np.ix_(rows, rows)])
        p.append(inverse[:num_columns] @ x[rows].T @ (vectors * values**-0.5) @ vectors.T @ left[rows])
    p = np.array(p)
    values, vectors = np.linalg.eigh(np.einsum("gqn,grn->qr", p, p))
    unit = np.einsum("qr,grn->gqn", vectors * values**-0.5 @ vectors.T, p)
    gram = np.einsum("gqn,jrn->gjqr", unit, unit)
    variance = np.einsum("gjss,gjtt->", gram, gram) + np.einsum("gjst,gjts->", gram, gram)
    df = num_columns * (num_columns + 1) / variance
    slopes, scores = (inverse @ x.T @ COMPONENTS)[:num_columns], p @ COMPONENTS
    expected = []
    for k in range(3):
        wald = slopes[:, k] @ np.linalg.solve(scores[:, :, k].T @ scores[:, :, k], slopes[:, k])
        rest = df - num_columns + 1
        expected.append(stats.f.sf(rest / df / num_columns * wald, num_columns, rest))
    names = np.array([f"patient {group}" for group in GROUPS])
    found = linear_associations(COMPONENTS, variable, {"others": others}, names)
    np.testing.assert_allclose(found.p, expected, rtol=1e-6)


def test_logistic_regression_is_statsmodels_and_separation_has_no_estimate():
    sm = pytest.importorskip("statsmodels.api")
    separating = np.column_stack([COMPONENTS, SEX + 0.01 * RNG.normal(size=N)])
    ours = logistic_associations(separating, SEX, {"age": AGE}, GROUPS)
    for k in range(3):
        design = np.column_stack([COMPONENTS[:, k], np.ones(N), AGE])
        fit = sm.Logit(SEX, design).fit(disp=0, cov_type="cluster", cov_kwds={"groups": GROUPS})
        assert ours.effect[k] == pytest.approx(fit.params[0], rel=1e-6)
        t = stats.t.isf(ours.p[k] / 2, 30)
        assert 0.8 < abs(fit.tvalues[0]) / t < 1.25  # other degrees of freedom
    assert np.isnan([ours.effect[3], ours.low[3], ours.p[3]]).all()


@pytest.mark.parametrize("draw", [lambda rng: rng.normal(size=40), lambda rng: rng.permutation(40) < 6])
def test_null_variables_of_patients_with_several_scans_are_found_in_five_percent(draw):
    rng, groups, rates = np.random.default_rng(1), np.repeat(np.arange(40), 3), []
    for _ in range(150):
        scans = rng.normal(size=(40, 20))[groups] + 0.6 * rng.normal(size=(120, 20))
        variable, other = draw(rng)[groups], rng.normal(size=40)[groups]
        alone = np.arange(120)  # as if each scan were a patient
        rates.append(
            [(linear_associations(scans, variable, {"other": other}, each).p < 0.05).mean() for each in (groups, alone)]
        )
    (clustered, naive), error = np.mean(rates, axis=0), np.std(rates, axis=0)[0] / 150**0.5
    assert 0.05 - 0.02 - 3 * error < clustered < 0.05 + 3 * error
    assert naive > 0.15


def test_p_values_of_many_small_classes_are_from_permutations_of_patients():
    rng, groups, p = np.random.default_rng(0), np.repeat(np.arange(60), 2), []
    for _ in range(8):
        scans = rng.normal(size=(60, 30))[groups] + 0.6 * rng.normal(size=(120, 30))
        classes = np.eye(12)[rng.permutation(60) % 12][groups][:, 1:]
        p.append(linear_associations(scans, classes, {"age": rng.normal(size=60)[groups]}, groups, 500).p)
    assert 0.02 < (np.array(p) < 0.05).mean() < 0.08
    assert (np.array(p) < 0.003).mean() < 0.01
    scans[:, 0] += 3 * classes[:, 0] - 3 * classes[:, 1]
    assert linear_associations(scans, classes, {}, groups, 500).p[0] == 1 / 500


@pytest.mark.parametrize(("variable", "covariates", "reason"), [
    (AGE * 0 + 3, {}, "the variable is constant"),
    (2 * AGE + 1, {"age": AGE}, "the variable is a combination"),
    (AGE, {"site": SITE, "again": SITE[:, 0]}, "covariate 'again' is a combination"),
    (numbered_groups(GROUPS) == 3, {}, "differs in one patient alone"),
])  # fmt: skip
def test_what_cannot_be_estimated_is_named(variable, covariates, reason):
    with pytest.raises(ConfigError, match=reason):
        linear_associations(COMPONENTS, np.asarray(variable, float), covariates, GROUPS)
    with pytest.raises(ConfigError, match="too few patients, 3, for 3 coefficients"):
        linear_associations(COMPONENTS, AGE, {"sex": SEX}, GROUPS % 3)


def test_a_constant_component_has_no_estimate_and_does_not_count_among_the_q_values():
    with_constant = np.column_stack([COMPONENTS, np.full(N, 0.1)])
    p = linear_associations(with_constant, AGE, {}, GROUPS).p
    assert np.isnan(p[3])
    np.testing.assert_allclose(q_values(p)[:3], stats.false_discovery_control(p[:3]))
    assert inflation(np.random.default_rng(0).random(20_000)) == pytest.approx(1, abs=0.03)
