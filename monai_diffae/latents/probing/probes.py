"""Probes: small models that predict a target from features, regularised by cross-validation over patients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.components import PixelComponents
from monai_diffae.latents.neighbors import numbered_groups

Floats = NDArray[np.float64]
Probe = Literal["linear", "knn", "boosting"]
Folds: TypeAlias = list[tuple[NDArray[np.intp], NDArray[np.intp]]]  # training and test cases

# values of the regularisation from which cross-validation chooses
RIDGE_ALPHAS = np.logspace(-3, 6, 19)
LOGISTIC_CS = np.logspace(-4, 2, 7)
NUM_NEIGHBORS = (100, 30, 10, 3)
_MAX_FOLDS = 5
_LEAST_STD = 1e-9  # smaller ones are rounding errors
_MOST_FOR_NEWTON = 2048  # weights; each of its steps takes their number squared


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A fitted probe.

    Attributes:
        model: a model of scikit-learn, which standardises the features itself.
        num_classes: number of classes; None for a continuous target.
        priors: ``[num_classes]``, the frequency of each class among the training cases.
        regularisation: the value that cross-validation chose: C of the logistic regression, alpha of the ridge
            regression, or the number of neighbors; None if there was nothing to choose.
    """

    model: Any
    num_classes: int | None
    priors: Floats
    regularisation: float | None

    def predict(self, features: Floats) -> Floats:
        """Predict probabilities ``[N, num_classes]``, or numbers ``[N]``."""
        if self.num_classes is None:
            return np.asarray(self.model.predict(features), np.float64)
        return _probabilities(self.model, features, self.num_classes)

    def ranking(self, features: Floats, training: Floats) -> Floats:
        """Values ``[N, num_classes]`` by which the cases of several folds can be ranked together, unlike probabilities.

        Probes that are fitted to different cases have different regularisations and base rates. Their pooled
        probabilities rank cases by fold, too, which lowers AUROC below chance if there is nothing to learn (Forman and
        Scholz 2010, doi:10.1145/1882471.1882479). These are logits (for ``knn`` shares), minus their mean and divided
        by their standard deviation among the probe's training cases.

        Args:
            features: ``[N, D]``.
            training: ``[M, D]``, the features that the probe was fitted to.
        """
        values, reference = (self._unbounded(self.predict(x)) for x in (features, training))
        std = reference.std(axis=0)
        return np.asarray((values - reference.mean(axis=0)) / np.where(std > _LEAST_STD, std, 1))

    def _unbounded(self, probabilities: Floats) -> Floats:
        from scipy.special import logit

        is_share = not hasattr(self.model[-1], "decision_function")
        return probabilities if is_share else np.asarray(logit(np.clip(probabilities, 1e-15, 1 - 1e-15)))

    def classify(self, probabilities: Floats) -> NDArray[np.intp]:
        """The class ``[N]`` that would be most probable if all were equally frequent; best for balanced accuracy."""
        ratio = np.divide(probabilities, self.priors, out=np.zeros_like(probabilities), where=self.priors > 0)
        return ratio.argmax(axis=1)


def fit_probe(
    probe: Probe,
    features: Floats,
    target: NDArray[Any],
    groups: NDArray[Any],
    num_classes: int | None,
    seed: int = 0,
    standardise: bool = True,
    balanced: bool = False,
) -> FittedProbe:
    """Fit a probe with the regularisation that has the smallest loss on held-out patients.

    ``linear`` is a logistic or a ridge regression, ``knn`` the nearest neighbors in standardised features, and
    ``boosting`` scikit-learn's histogram gradient boosting with its defaults. The loss is the log loss for classes and
    the squared error for numbers, in up to 5 folds over the patients. The strongest of equally good values is used, and
    the strongest of all if there are too few patients for folds.

    Args:
        probe: ``linear``, ``knn`` or ``boosting``.
        features: ``[N, D]``.
        target: ``[N]``, classes counted from 0, or numbers.
        groups: ``[N]``, the patients.
        num_classes: number of classes; None for a continuous target.
        seed: random seed of the folds and of boosting.
        standardise: scale each feature to a standard deviation of 1. Not for features whose scales are informative,
            such as principal components, the last of which are noise.
        balanced: weight the cases of ``linear`` as if all classes were equally frequent.

    Raises:
        ConfigError: all training cases have the same class.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> fitted = fit_probe("linear", x, (x[:, 0] > 0).astype(int), np.arange(200), 2)
        >>> fitted.predict(x).shape, fitted.regularisation > 1
        ((200, 2), True)
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if num_classes is not None and len(np.unique(target)) < 2:
        raise ConfigError("the training cases are all of one class; label more patients")
    features = np.asarray(features, np.float64)  # Newton's method is not accurate enough in float32
    folds = inner_folds(target, groups, num_classes, seed)
    num_cases = min([len(train) for train, _ in folds], default=len(target))
    num_weights = features.shape[1] * (num_classes or 1)
    model, parameter, values = _model(probe, num_classes is not None, num_cases, num_weights, seed)
    weights = np.ones(len(target))
    if balanced and num_classes is not None:
        model.set_params(class_weight="balanced")
        weights = 1 / np.bincount(target)[target]
    scaler = StandardScaler(with_std=standardise)
    best = None
    if parameter:
        if folds:
            losses = _losses(model, parameter, values, (features, target, weights, num_classes), scaler, folds)
            best = values[int(losses.argmin())]  # the first, and so the strongest, of equals
        model.set_params(**{parameter: values[0] if best is None else best})
    priors = np.bincount(target, minlength=num_classes) / len(target) if num_classes is not None else np.empty(0)
    fitted = make_pipeline(scaler, model).fit(features, target)
    return FittedProbe(fitted, num_classes, priors, None if best is None else float(best))


def inner_folds(target: NDArray[Any], groups: NDArray[Any], num_classes: int | None, seed: int = 0) -> Folds:
    """The folds that choose a probe's regularisation: :func:`grouped_folds` whose training part has several classes."""
    folds = grouped_folds(target, groups, num_classes, seed)
    return [fold for fold in folds if num_classes is None or len(np.unique(target[fold[0]])) > 1]


def grouped_folds(target: NDArray[Any], groups: NDArray[Any], num_classes: int | None, seed: int = 0) -> Folds:
    """Divide patients into up to 5 folds with classes as balanced as possible, whatever their names.

    The number of folds does not exceed the number of patients of the rarest class; there are none if that is 1.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    member = numbered_groups(groups)
    num_groups = num_patients = int(member.max()) + 1
    if num_classes is not None:
        num_patients = min(len(np.unique(member[target == label])) for label in np.unique(target))
    num = min(_MAX_FOLDS, num_patients)
    if num < 2:
        return []
    if num_classes is None:
        shuffled = np.random.default_rng(seed).permutation(num_groups)[member]
        return list(GroupKFold(num).split(member, groups=shuffled))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about classes with fewer cases than folds
        return list(StratifiedGroupKFold(num, shuffle=True, random_state=seed).split(member, target, member))


def pca_features(images_train: ArrayLike, images_test: ArrayLike, dims: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The baseline of every probe: principal components of the pixels, fitted to the training images.

    Args:
        images_train: ``[N, ...]``.
        images_test: ``[M, ...]``, images of the same shape.
        dims: number of components; fewer if there are not as many images or pixels (N images span N - 1).

    Returns:
        ``[N, dims]`` and ``[M, dims]``, scaled together to a standard deviation of about 1 in training.

    Example:
        >>> images = np.random.default_rng(0).normal(size=(20, 1, 4, 4))
        >>> [features.shape for features in pca_features(images[:15], images[15:], 8)]
        [(15, 8), (5, 8)]
    """
    train, test = np.asarray(images_train), np.asarray(images_test)
    components = PixelComponents.fit([train], dims)
    return components.features(train), components.features(test)


def _model(
    probe: Probe, is_class: bool, num_cases: int, num_weights: int, seed: int
) -> tuple[Any, str, Sequence[float]]:
    """The model, the parameter that regularises it, and the values to choose from, strongest first."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    if probe == "linear":
        if is_class:
            # Newton's method converges in a few steps, also where features have very different scales; with fewer cases
            # than weights, each of its steps takes longer than all of lbfgs
            solver = "newton-cholesky" if num_weights <= min(num_cases, _MOST_FOR_NEWTON) else "lbfgs"
            return LogisticRegression(solver=solver, max_iter=2000), "C", LOGISTIC_CS.tolist()
        return Ridge(), "alpha", RIDGE_ALPHAS[::-1].tolist()
    if probe == "knn":
        counts = list(dict.fromkeys(min(count, num_cases) for count in NUM_NEIGHBORS))
        return KNeighborsClassifier() if is_class else KNeighborsRegressor(), "n_neighbors", counts
    # without early stopping, which would hold out cases instead of patients
    boosting = HistGradientBoostingClassifier if is_class else HistGradientBoostingRegressor
    return boosting(early_stopping=False, random_state=seed), "", ()


def _losses(
    model: Any,
    parameter: str,
    values: Sequence[float],
    data: tuple[Floats, NDArray[Any], Floats, int | None],
    scaler: Any,
    folds: Folds,
) -> Floats:
    """The summed loss on held-out patients for each value of the parameter."""
    from sklearn import config_context

    features, target, weights, num_classes = data
    losses = np.zeros(len(values))
    # checking the same arrays in every fit would take longer than small fits do
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for train, test in folds:
            scaler.fit(features[train])
            x_train, x_test = scaler.transform(features[train]), scaler.transform(features[test])
            if parameter == "alpha":  # all values at once, each as a target of its own
                model.set_params(alpha=np.array(values)).fit(x_train, np.tile(target[train, None], len(values)))
                losses += ((model.predict(x_test) - target[test, None]) ** 2).sum(axis=0)
                continue
            for i, value in enumerate(values):
                model.set_params(**{parameter: value}).fit(x_train, target[train])
                losses[i] += weights[test] @ _loss(model, x_test, target[test], num_classes)
    return losses


def _loss(model: Any, features: Floats, target: NDArray[Any], num_classes: int | None) -> Floats:
    """The log loss, or squared error, of each case."""
    if num_classes is None:
        return np.asarray((model.predict(features) - target) ** 2)
    p = _probabilities(model, features, num_classes)[np.arange(len(target)), target]
    return np.asarray(-np.log(np.maximum(p, 1e-6)))  # a class without any neighbor is not impossible


def _probabilities(model: Any, features: Floats, num_classes: int) -> Floats:
    """Probabilities ``[N, num_classes]``; 0 for classes that the model was not fitted to."""
    probabilities = np.zeros((len(features), num_classes))
    probabilities[:, model.classes_] = model.predict_proba(features)
    return probabilities
