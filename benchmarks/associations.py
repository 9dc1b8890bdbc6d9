"""How often `associate` finds what is not there, and what is: null variables, false discoveries and power.

Virtual patients with correlated scans and 20 components; variables of patients: numbers, classes of equal size and of
1:9, skewed numbers. python benchmarks/associations.py --runs 1000
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from monai_diffae.latents.association import linear_associations, q_values

NUM_COMPONENTS, NUM_TRUE = 20, 2
VARIABLES = {
    "number": lambda rng, num: rng.normal(size=num),
    "class 1:1": lambda rng, num: (rng.permutation(num) < num / 2) * 2.0,  # an effect is per half of the difference
    "class 1:9": lambda rng, num: (rng.permutation(num) < num / 10) * 2.0,
    "lognormal": lambda rng, num: np.exp(rng.normal(size=num)),
}


def draw(rng, patients, scans):
    """Patients, and 20 components of which 70 % of the variance is between patients."""
    groups = np.repeat(np.arange(patients), scans)
    between, within = rng.normal(size=(patients, NUM_COMPONENTS)), rng.normal(size=(len(groups), NUM_COMPONENTS))
    return groups, 0.7**0.5 * between[groups] + 0.3**0.5 * within


def null_rates(patients, scans, name, runs):
    """The share of p < .05: ours, the usual clustered errors, and each scan as a patient of its own."""
    rng, rates = np.random.default_rng([patients, scans, *name.encode()]), []
    for _ in range(runs):
        groups, components = draw(rng, patients, scans)
        variable, covariate = VARIABLES[name](rng, patients)[groups], rng.normal(size=patients)[groups]
        ours = linear_associations(components, variable, {"covariate": covariate}, groups).p
        design = np.column_stack([variable, np.ones(len(groups)), covariate])
        slopes, squares, *_ = np.linalg.lstsq(design, components, rcond=None)
        df, inverse = len(groups) - 3, np.linalg.inv(design.T @ design)
        errors = np.sqrt(squares / df * inverse[0, 0])
        residuals = (design @ inverse[0])[:, None] * (components - design @ slopes)
        sums = np.add.reduceat(residuals, np.arange(patients) * scans)  # CR1, as statsmodels' cov_type="cluster"
        clustered = np.sqrt(patients / (patients - 1) * (len(groups) - 1) / df * np.square(sums).sum(axis=0))
        usual = 2 * stats.t.sf(abs(slopes[0]) / clustered, patients - 1)
        rates.append([(p < 0.05).mean() for p in (ours, usual, 2 * stats.t.sf(abs(slopes[0]) / errors, df))])
    return np.mean(rates, axis=0), np.std(rates, axis=0) / runs**0.5


def discoveries(patients, scans, effect, runs):
    """The false discovery rate and the power at q < .05, and the coverage of the intervals."""
    rng, found = np.random.default_rng([patients, scans, round(100 * effect)]), []
    for _ in range(runs):
        groups, components = draw(rng, patients, scans)
        p, covered = [], []
        for name in ("number", "class 1:1", "class 1:9"):
            variable = VARIABLES[name](rng, patients)[groups]
            planted = components + effect * np.outer(variable, np.arange(NUM_COMPONENTS) < NUM_TRUE)
            result = linear_associations(planted, variable, {"covariate": rng.normal(size=patients)[groups]}, groups)
            p.append(result.p)
            covered.append(((result.low < effect) & (effect < result.high))[:NUM_TRUE].mean())
        is_found = (q_values(np.concatenate(p)) < 0.05).reshape(3, -1)
        false = is_found[:, NUM_TRUE:].sum() / max(is_found.sum(), 1)
        found.append([false, is_found[:, :NUM_TRUE].mean(), np.mean(covered)])
    return np.mean(found, axis=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    for patients, scans in ((30, 1), (30, 3), (100, 1), (100, 3), (400, 1), (400, 3)):
        for name in VARIABLES:
            rates, errors = null_rates(patients, scans, name, runs)
            values = ", ".join(f"{rate:.4f} +- {error:.4f}" for rate, error in zip(rates, errors, strict=True))
            print(f"{patients} x {scans}, {name}: CR2, CR1, scans as patients: {values}", flush=True)
    for patients in (50, 100, 200, 400):
        for effect in (0.1, 0.2, 0.3, 0.5):
            values = discoveries(patients, 2, effect, runs)
            print(
                f"{patients} x 2, effect {effect}: false {values[0]:.3f}, power {values[1]:.2f}, cover {values[2]:.3f}"
            )
