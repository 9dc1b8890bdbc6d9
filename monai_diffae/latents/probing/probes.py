"""Probes: small models that read a target off features, with a strength that cross-validation over patients chose."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError

Floats = NDArray[np.float64]
Probe = Literal["linear", "knn", "boosting"]
Folds: TypeAlias = list[tuple[NDArray[np.intp], NDArray[np.intp]]]  # training and test cases

# strengths of regularisation that cross-validation chooses from
RIDGE_ALPHAS = np.logspace(-3, 6, 19)
LOGISTIC_CS = np.logspace(-4, 2, 7)
NEIGHBOURS = (100, 30, 10, 3)
_MOST_FOLDS = 5
_FEW_IMAGES = 500


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A probe, fitted.

    Attributes:
        model: scikit-learn's, which standardises the features itself.
        num_classes: None of a continuous target.
        priors: ``[num_classes]``, how frequent each class is among the training cases.
        strength: what cross-validation chose: logistic regression's C, ridge's alpha, how many neighbours; None where
            there was nothing to choose.
    """

    model: Any
    num_classes: int | None
    priors: Floats
    strength: float | None

    def predict(self, features: Floats) -> Floats:
        """``[N, num_classes]`` probabilities, or ``[N]`` numbers."""
        if self.num_classes is None:
            return np.asarray(self.model.predict(features), np.float64)
        return _probabilities(self.model, features, self.num_classes)

    def classify(self, probabilities: Floats) -> NDArray[np.intp]:
        """The class that is the most probable if all were equally frequent: the one for the best balanced accuracy."""
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
) -> FittedProbe:
    """Fit a probe; its strength is the one with the least loss on held-out patients, the strongest of equals.

    Where the patients allow no folds it is the strongest that there is.

    ``linear`` is a logistic or a ridge regression, ``knn`` the nearest neighbours in standardised features, and
    ``boosting`` scikit-learn's histogram gradient boosting with its defaults. The loss is the log loss of classes and
    the squared error of numbers, in up to 5 folds that divide the patients.

    Args:
        probe: which.
        features: ``[N, D]``.
        target: ``[N]``, classes from 0, or numbers.
        groups: ``[N]``, the patients.
        num_classes: None of a continuous target.
        seed: of the folds, and of the boosting.
        standardise: bring each feature to a standard deviation of 1; not those whose scales say something, such as
            principal components, of which the last are noise.

    Raises:
        ConfigError: one class only.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> fitted = fit_probe("linear", x, (x[:, 0] > 0).astype(int), np.arange(200), 2)
        >>> fitted.predict(x).shape, fitted.strength > 1
        ((200, 2), True)
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if num_classes is not None and len(np.unique(target)) < 2:
        raise ConfigError("the training cases are all of one class; label more patients")
    folds = inner_folds(target, groups, num_classes, seed)
    most = min([len(train) for train, _ in folds], default=len(target))
    model, parameter, strengths = _model(probe, num_classes is not None, most, seed)
    scaler = StandardScaler(with_std=standardise)
    strength = None
    if parameter:
        if folds:
            strength = _best(model, parameter, strengths, scaler, features, target, num_classes, folds)
        model.set_params(**{parameter: strengths[0] if strength is None else strength})
    priors = np.bincount(target, minlength=num_classes) / len(target) if num_classes is not None else np.empty(0)
    fitted = make_pipeline(scaler, model).fit(features, target)
    return FittedProbe(fitted, num_classes, priors, None if strength is None else float(strength))


def inner_folds(target: NDArray[Any], groups: NDArray[Any], num_classes: int | None, seed: int = 0) -> Folds:
    """The folds that choose a probe's strength: those of :func:`grouped_folds` that train on two classes or more.

    Args:
        target: ``[N]`` of the training cases, classes from 0, or numbers.
        groups: ``[N]``, the patients.
        num_classes: None of a continuous target.
        seed: which patients are together.

    Example:
        >>> target = np.array([0, 0, 1, 1])
        >>> len(inner_folds(target, np.array([1, 2, 3, 4]), 2)), len(inner_folds(target, np.array([1, 2, 3, 3]), 2))
        (2, 0)
    """
    folds = grouped_folds(target, groups, num_classes, seed)
    return [fold for fold in folds if num_classes is None or len(np.unique(target[fold[0]])) > 1]


def grouped_folds(target: NDArray[Any], groups: NDArray[Any], num_classes: int | None, seed: int = 0) -> Folds:
    """Up to 5 folds that divide the patients, none in both parts, with classes as evenly in each as can be.

    There are no more than the class with the fewest patients has; none where that leaves one.

    Args:
        target: ``[N]``, classes from 0, or numbers.
        groups: ``[N]``, the patients.
        num_classes: None of a continuous target.
        seed: which patients are together.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    names, member = np.unique(groups, return_inverse=True)
    least = len(names)
    if num_classes is not None:
        least = min(len(np.unique(member[target == label])) for label in np.unique(target))
    num = min(_MOST_FOLDS, least)
    if num < 2:
        return []
    if num_classes is None:
        shuffled = np.random.default_rng(seed).permutation(len(names))[member]
        return list(GroupKFold(num).split(member, groups=shuffled))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer cases than folds
        return list(StratifiedGroupKFold(num, shuffle=True, random_state=seed).split(member, target, member))


def pca_features(images_train: ArrayLike, images_test: ArrayLike, dims: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """What a probe should be compared with: the principal components of the pixels, fitted to the training images.

    Args:
        images_train: ``[N, ...]``.
        images_test: ``[M, ...]``, of the same shape each.
        dims: components; fewer where there are not as many images or pixels: N images span N - 1.

    Returns:
        ``[N, dims]`` and ``[M, dims]``, together of a standard deviation of about 1 in training.

    Example:
        >>> images = np.random.default_rng(0).normal(size=(20, 1, 4, 4))
        >>> [features.shape for features in pca_features(images[:15], images[15:], 8)]
        [(15, 8), (5, 8)]
    """
    from sklearn.decomposition import PCA

    train, test = (np.asarray(images).reshape(len(images), -1) for images in (images_train, images_test))  # type: ignore[arg-type]
    # of few images the random projections, which are faster, lose much of the last components
    solver = "full" if min(train.shape) <= _FEW_IMAGES else "auto"
    num = max(1, min(dims, len(train) - 1, train.shape[1]))
    pca = PCA(num, svd_solver=solver, random_state=0).fit(train)
    scale = np.sqrt(pca.explained_variance_.mean()) or 1.0
    return pca.transform(train) / scale, pca.transform(test) / scale


def _model(probe: Probe, is_class: bool, num_cases: int, seed: int) -> tuple[Any, str, Sequence[float]]:
    """The model, and the parameter that is to be chosen with its values, the strongest first."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    if probe == "linear":
        if is_class:
            return LogisticRegression(max_iter=2000), "C", LOGISTIC_CS.tolist()
        return Ridge(), "alpha", RIDGE_ALPHAS[::-1].tolist()
    if probe == "knn":
        counts = list(dict.fromkeys(min(count, num_cases) for count in NEIGHBOURS))
        return KNeighborsClassifier() if is_class else KNeighborsRegressor(), "n_neighbors", counts
    # the cases that early stopping would hold out know no patients
    boosting = HistGradientBoostingClassifier if is_class else HistGradientBoostingRegressor
    return boosting(early_stopping=False, random_state=seed), "", ()


def _best(
    model: Any,
    parameter: str,
    strengths: Sequence[float],
    scaler: Any,
    features: Floats,
    target: NDArray[Any],
    num_classes: int | None,
    folds: Folds,
) -> float:
    from sklearn import config_context

    losses = np.zeros(len(strengths))
    # the checks of the same arrays again and again take longer than small fits
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for train, test in folds:
            scaler.fit(features[train])
            seen, held_out = scaler.transform(features[train]), scaler.transform(features[test])
            if parameter == "alpha":  # all strengths at once, each as a target of its own
                model.set_params(alpha=np.array(strengths)).fit(seen, np.tile(target[train, None], len(strengths)))
                losses += ((model.predict(held_out) - target[test, None]) ** 2).sum(axis=0)
                continue
            for i, strength in enumerate(strengths):
                model.set_params(**{parameter: strength}).fit(seen, target[train])
                losses[i] += _loss(model, held_out, target[test], num_classes)
    return strengths[int(losses.argmin())]  # the first, and so the strongest, of equals


def _loss(model: Any, features: Floats, target: NDArray[Any], num_classes: int | None) -> float:
    """The summed log loss, or squared error."""
    if num_classes is None:
        return float(((model.predict(features) - target) ** 2).sum())
    p = _probabilities(model, features, num_classes)[np.arange(len(target)), target]
    return float(-np.log(np.maximum(p, 1e-6)).sum())  # no neighbour of a class is no certainty


def _probabilities(model: Any, features: Floats, num_classes: int) -> Floats:
    """``[N, num_classes]``, 0 of classes that the model was not fitted to."""
    probabilities = np.zeros((len(features), num_classes))
    probabilities[:, model.classes_] = model.predict_proba(features)
    return probabilities
