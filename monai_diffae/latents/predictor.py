"""Predictors of labels: the best features, a linear model fitted to all labelled cases, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.latents.directions import are_marked, case_marks
from monai_diffae.latents.probing.nested import (
    HeldOutPredictions,
    cross_validation_folds,
    held_out_predictions,
    predict_held_out,
)
from monai_diffae.latents.probing.probes import FittedProbe, ProbeModel
from monai_diffae.latents.probing.scores import ClassScores, NumberScores, p_value, plain, with_interval
from monai_diffae.latents.statistics import Floats, LatentStatistics, checked_codes
from monai_diffae.latents.targets import Target

COVERAGE = 0.9
"""The share of new scans whose number lies in its interval."""
_UNLIKE = 0.01  # p-value
_NUM_MARKS = 16
_COPY_DISTANCE = 0.4  # of X-rays: copies as JPEG or in another size have at most .24, other patients at least .9
_LEAST_COPY_DISTANCE = 1e-3  # rounding
_LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True, eq=False)
class Predictor:
    """Predicts a label of new cases from their codes, such as z_sem.

    A linear model, ``codes @ weight.T + intercept``: the logits of the classes (multinomial logistic regression), or
    the number (ridge regression). Logits are divided by a temperature, and numbers get an interval, both from the
    predictions for held-out patients (Guo et al. 2017, arXiv 1706.04599; Vovk 2015, cross-conformal predictors).

    Example:
        >>> from monai_diffae.latents.probing import read_target
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> target = read_target(np.where(x[:, 0] > 0, "ill", "well"), "state")
        >>> predictor = fit_predictor({"z": x}, target, np.arange(200))
        >>> probabilities = predictor.predict([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0]])
        >>> predictor.classes, probabilities.round().tolist()
        (('ill', 'well'), [[1.0, 0.0], [0.0, 1.0]])
    """

    target: str  #: name of the label
    classes: tuple[str, ...] | None  #: names of the classes; None for a number
    features: str  #: the codes that it reads, such as ``z`` or ``wide``: those that predict best
    weight: Floats  #: ``[K, D]``, K classes; 1 for a number
    intercept: Floats  #: ``[K]``
    temperature: float  #: the logits are divided by it; 1 for a number
    residuals: Floats  #: absolute errors of held-out cases, ascending; empty for classes
    statistics: LatentStatistics  #: of the labelled cases
    reference: Floats  #: the distance of each from the mean of the others, ascending; those of new cases are compared
    marks: Floats  #: ``[N, 16]``, numbers by which each labelled case is recognised
    tolerance: float  #: the distance of marks up to which a case is taken for a copy of a labelled one
    scores: Mapping[str, Any]  #: AUROC or R2 of held-out patients with its 95 % interval, and what it was measured on

    def predict(self, codes: ArrayLike) -> Floats:
        """Probabilities ``[N, K]``, or numbers ``[N]``, of cases ``[N, D]``.

        A probability holds where the classes are as frequent as among the labelled cases.
        """
        output = self._codes(codes) @ self.weight.T + self.intercept
        return output[:, 0] if self.classes is None else _with_temperature(output, self.temperature)

    @property
    def half_width(self) -> float:
        """Half of the interval of a number, which holds that of 90 % of new scans; infinite with fewer than 9 cases."""
        return _quantile(self.residuals)

    def p_values(self, codes: ArrayLike) -> Floats:
        """The share ``[N]`` of labelled cases that are as far from their mean; small for cases of another kind."""
        distances = _distances(self._codes(codes), self.statistics)
        as_far = len(self.reference) - np.searchsorted(self.reference, distances)
        return np.asarray((1 + as_far) / (1 + len(self.reference)))

    def is_unlike(self, codes: ArrayLike) -> NDArray[np.bool_]:
        """Whether each case ``[N]`` is farther from the labelled ones than 99 % of them; of fewer than 99, than all."""
        return self.p_values(codes) <= max(_UNLIKE, 1 / (1 + len(self.reference)))

    def is_labelled(self, codes: ArrayLike) -> NDArray[np.bool_]:
        """Whether each case ``[N]`` is one of the labelled cases, or a copy: its label was known to the model."""
        return are_marked(self.statistics.normalise(self._codes(codes)), self.marks, self.tolerance)

    def _codes(self, codes: ArrayLike) -> Floats:
        return checked_codes(codes, self.weight.shape[1], num_least=0).astype(np.float64)


def fit_predictor(features: Mapping[str, ArrayLike], target: Target, patients: ArrayLike, seed: int = 0) -> Predictor:
    """Fit a predictor to the labelled cases of a target, with the features that predict held-out patients best.

    Features and regularisation are chosen by inner cross-validation over patients. The scores are those of this whole
    procedure, in an outer cross-validation. The temperature and the errors of numbers are those of the final choice.

    Args:
        features: ``[N, D]`` by name, of the cases to which the target's rows refer.
        target: the label of K cases; classes of fewer than 3 patients are left out.
        patients: ``[N]``.
        seed: random seed of the folds and of the bootstrap.

    Raises:
        ConfigError: there are fewer than 6 cases, or 3 patients, or two classes.
    """
    target, folds = cross_validation_folds(target, np.asarray(patients)[target.rows], seed)
    groups = np.asarray(patients)[target.rows]
    sets = {name: np.asarray(codes, np.float64)[target.rows] for name, codes in features.items()}
    chosen = [_fit(sets, target, groups, train, seed) for train, _ in folds]
    held_out = held_out_predictions([probe for _, probe in chosen], [sets[name] for name, _ in chosen], target, folds)
    name, probe = _fit(sets, target, groups, np.arange(len(groups)), seed)
    fixed = ProbeModel(seed=seed, standardise=False, regularisation=probe.regularisation)
    of_final = predict_held_out([sets[name]] * len(folds), target, groups, folds, fixed).predicted
    temperature, residuals = 1.0, np.empty(0)
    if target.classes is None:
        residuals = np.sort(np.abs(of_final - target.values))
    else:
        temperature = _fitted_temperature(of_final, target.values)
    statistics = LatentStatistics.of(sets[name])
    marks = case_marks(statistics.normalise(sets[name]), _NUM_MARKS)
    weight, intercept = _linear(probe)
    return Predictor(
        target.name,
        target.classes,
        name,
        weight,
        intercept,
        temperature,
        residuals,
        statistics,
        np.sort(_distances(sets[name], statistics, are_fitted=True)),
        marks,
        _copy_distance(marks),
        _scores(held_out, target, groups, seed),
    )


def _fit(
    sets: Mapping[str, Floats], target: Target, groups: NDArray[Any], train: NDArray[np.intp], seed: int
) -> tuple[str, FittedProbe]:
    """The linear probe with the smallest loss on held-out patients of the training cases, and its features."""
    model = ProbeModel(seed=seed, standardise=False)
    fitted = {
        name: model.fit(x[train], target.values[train], groups[train], target.num_classes) for name, x in sets.items()
    }
    name = min(fitted, key=lambda each: fitted[each].loss)
    return name, fitted[name]


def _linear(probe: FittedProbe) -> tuple[Floats, Floats]:
    """The weights ``[K, D]`` and intercepts ``[K]`` of a linear probe, with its scaling."""
    scaler, model = probe.model
    weight = np.atleast_2d(model.coef_)
    intercept = np.atleast_1d(model.intercept_) - weight @ scaler.mean_
    if probe.num_classes == 2:
        weight, intercept = np.stack([0 * weight[0], weight[0]]), np.array([0.0, intercept[0]])
    return weight, intercept


def _with_temperature(logits: Floats, temperature: float) -> Floats:
    from scipy.special import softmax

    return np.asarray(softmax(logits / temperature, axis=1))


def _logits(probabilities: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(probabilities, _LEAST_PROBABILITY)))


def _fitted_temperature(probabilities: Floats, truth: NDArray[np.intp]) -> float:
    """The temperature with the smallest log loss of predictions ``[N, K]``, from 1/20 to 20."""
    from scipy.optimize import minimize_scalar

    logits = _logits(probabilities)

    def loss(log_temperature: float) -> float:
        p = _with_temperature(logits, np.exp(log_temperature))[np.arange(len(truth)), truth]
        return float(-np.log(np.maximum(p, _LEAST_PROBABILITY)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _distances(codes: Floats, statistics: LatentStatistics, *, are_fitted: bool = False) -> Floats:
    """The root mean square ``[N]`` of normalised codes ``[N, D]``; of fitted cases, by the statistics of the others."""
    squares, n = np.square(statistics.normalise(codes)), len(codes)
    if are_fitted:  # with all of them, they would be nearer than new cases
        squares = n / (n - 1) * squares / np.maximum(1 - squares / (n - 1), np.finfo(float).tiny)
    return np.asarray(np.sqrt(squares.mean(axis=1)))


def _copy_distance(marks: Floats) -> float:
    """Half of the distance to the nearest other case that 99 % exceed, and at most that of copies with some loss."""
    from scipy.spatial import KDTree

    nearest = KDTree(marks).query(marks, k=2)[0][:, 1]
    return float(np.clip(np.quantile(nearest, 0.01) / 2, _LEAST_COPY_DISTANCE, _COPY_DISTANCE))


def _quantile(errors: Floats) -> float:
    """The error below which a new one lies with a probability of 90 %; infinite if fewer than 9 are known."""
    rank = int(np.ceil((len(errors) + 1) * COVERAGE))
    return float(np.sort(errors)[rank - 1]) if rank <= len(errors) else float("inf")


def _scores(held_out: HeldOutPredictions, target: Target, groups: NDArray[Any], seed: int) -> dict[str, Any]:
    """How well held-out patients are predicted; each fold is calibrated on the others."""
    num_folds = int(held_out.fold.max()) + 1
    others = [held_out.fold != fold for fold in range(num_folds)]
    tests = [~each for each in others]
    scores: dict[str, Any] = {"num_cases": len(groups), "num_patients": len(np.unique(groups)), "num_folds": num_folds}
    if target.classes is None:
        errors = np.abs(held_out.predicted - target.values)
        covered = [errors[test] <= _quantile(errors[other]) for test, other in zip(tests, others, strict=True)]
        scores["coverage"] = float(np.concatenate(covered).mean()) if np.isfinite(_quantile(errors)) else None
    else:
        calibrated = np.empty_like(held_out.predicted)
        for test, other in zip(tests, others, strict=True):
            temperature = _fitted_temperature(held_out.predicted[other], target.values[other])
            calibrated[test] = _with_temperature(_logits(held_out.predicted[test]), temperature)
        held_out = replace(held_out, predicted=calibrated, predicted_class=calibrated.argmax(axis=1))
    measured: ClassScores | NumberScores = held_out.scores()
    score, low, high = with_interval(measured, groups, seed, num_folds)
    values = dict(zip(measured.metrics, map(plain, measured(np.ones(len(groups)))), strict=True))
    return {
        **scores,
        **values,
        "metric": measured.metrics[0],
        "score": plain(score),
        "low": plain(low),
        "high": plain(high),
        "p": p_value(measured, groups, seed, num_folds),
    }
