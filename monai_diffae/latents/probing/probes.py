"""Probes, small models that predict a target, regularised by cross-validation over patients; and their features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.harmonization import harmonized
from monai_diffae.latents.neighbors import numbered_groups
from monai_diffae.latents.statistics import Floats, PixelComponents

Probe = Literal["linear", "knn", "boosting"]
Folds: TypeAlias = list[tuple[NDArray[np.intp], NDArray[np.intp]]]  # training and test cases

# values of the regularisation from which cross-validation chooses
RIDGE_ALPHAS = np.logspace(-3, 6, 19)
LOGISTIC_CS = np.logspace(-4, 2, 7)
NUM_NEIGHBORS = (100, 30, 10, 3)
_MAX_FOLDS = 5
_LEAST_STD = 1e-9  # smaller ones are rounding errors
_FOR_CHOLESKY = 128, 1024  # most weights, with few and many cases; each of its steps takes their number cubed
_TOLERANCE = 1e-7  # of the gradient; with scikit-learn's default of 1e-4, probabilities are off by up to .05
Extract: TypeAlias = Callable[[NDArray[np.intp]], Floats]

PCA_NAME, INTENSITY_NAME, WIDE_NAME = "PCA of pixels", "intensity statistics", "wide"

_LARGEST = 1e100  # the sum of the squares of many larger values overflows
_DECILES = np.arange(10, 100, 10)


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A fitted probe."""

    model: Any  #: a model of scikit-learn, which standardises the features itself
    num_classes: int | None  #: number of classes; None for a continuous target
    priors: Floats  #: ``[num_classes]``, the frequency of each class among the training cases
    #: the value that was given or chosen: C of the logistic regression, alpha of the ridge regression, or the number of
    #: neighbors; None if there was nothing to choose
    regularisation: float | None
    loss: float = float("inf")  #: of held-out patients, when the regularisation was chosen; infinite: it was not

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
        from scipy.special import logit

        values, reference = (self.predict(x) for x in (features, training))
        if hasattr(self.model[-1], "decision_function"):  # else they are shares of neighbors
            values, reference = (logit(np.clip(each, 1e-15, 1 - 1e-15)) for each in (values, reference))
        std = reference.std(axis=0)
        return np.asarray((values - reference.mean(axis=0)) / np.where(std > _LEAST_STD, std, 1))

    def classify(self, probabilities: Floats) -> NDArray[np.intp]:
        """The class ``[N]`` that would be most probable if all were equally frequent; best for balanced accuracy."""
        ratio = np.divide(probabilities, self.priors, out=np.zeros_like(probabilities), where=self.priors > 0)
        return ratio.argmax(axis=1)


@dataclass(frozen=True)
class ProbeModel:
    """A probe, and how it is fitted.

    ``linear`` is a logistic or a ridge regression, ``knn`` the nearest neighbors in standardised features, and
    ``boosting`` scikit-learn's histogram gradient boosting with its defaults.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> fitted = ProbeModel("linear").fit(x, (x[:, 0] > 0).astype(int), np.arange(200), 2)
        >>> fitted.predict(x).shape, fitted.regularisation > 1
        ((200, 2), True)
    """

    name: Probe = "linear"
    seed: int = 0  #: of the folds and of boosting
    #: scale each feature to a standard deviation of 1. Principal components and embeddings keep their scales: their
    #: last dimensions are noise
    standardise: bool = True
    balanced: bool = False  #: weight the cases of ``linear`` as if all classes were equally frequent
    regularisation: float | None = None  #: C or alpha of ``linear``, if it was fixed beforehand

    def fit(self, features: Floats, target: NDArray[Any], groups: NDArray[Any], num_classes: int | None) -> FittedProbe:
        """Fit the probe with the regularisation that has the smallest loss on held-out patients.

        The loss is the log loss for classes and the squared error for numbers, in up to 5 folds over the patients. The
        strongest of equally good values is used, and the strongest of all if there are too few patients for folds.

        Args:
            features: ``[N, D]``.
            target: ``[N]``, classes counted from 0, or numbers.
            groups: ``[N]``, the patients.
            num_classes: number of classes; None for a continuous target.

        Raises:
            ConfigError: all training cases have the same class.
        """
        from sklearn import config_context
        from sklearn.preprocessing import StandardScaler

        if num_classes is not None and len(np.unique(target)) < 2:
            raise ConfigError("the training cases are all of one class; label more patients")
        features = np.asarray(features, np.float64)  # Newton's method is not accurate enough in float32
        is_fixed = self.regularisation is not None and self.name == "linear"
        folds = [] if is_fixed or self.name == "boosting" else inner_folds(target, groups, num_classes, self.seed)
        num_cases = min([len(train) for train, _ in folds], default=len(target))
        values = [self.regularisation] if is_fixed else regularisations(self.name, num_classes, num_cases)
        weights = np.ones(len(target))
        if self.balanced and num_classes is not None:
            weights = 1 / np.bincount(target)[target]
        losses = np.zeros(len(values))
        scaler = StandardScaler(with_std=self.standardise)
        # checking the same arrays in every fit would take longer than small fits do
        with config_context(assume_finite=True, skip_parameter_validation=True):
            for train, test in folds:
                x_train, x_test = scaler.fit_transform(features[train]), scaler.transform(features[test])
                for i, model in enumerate(self._models(x_train, target[train], num_classes, values)):
                    losses[i] += weights[test] @ _loss(model, x_test, target[test], num_classes)
            best = values[int(losses.argmin())]  # the first, and so the strongest, of equals
            (fitted,) = self.fit_path(features, target, num_classes, [best])
        if not folds:
            return fitted if is_fixed else replace(fitted, regularisation=None)
        return replace(fitted, loss=float(losses.min() / sum(len(test) for _, test in folds)))

    def fit_path(
        self, features: Floats, target: NDArray[Any], num_classes: int | None, values: Sequence[Any]
    ) -> Iterator[FittedProbe]:
        """Fit the probe with each of several regularisations, strongest first."""
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler(with_std=self.standardise)
        x = scaler.fit_transform(np.asarray(features, np.float64))
        priors = np.bincount(target, minlength=num_classes) / len(target) if num_classes is not None else np.empty(0)
        for value, model in zip(values, self._models(x, target, num_classes, values), strict=True):
            regularisation = None if value is None else float(value)
            yield FittedProbe(make_pipeline(scaler, model), num_classes, priors, regularisation)

    def _models(self, x: Floats, target: NDArray[Any], num_classes: int | None, values: Sequence[Any]) -> Iterator[Any]:
        """The models of scikit-learn for each value, in this order."""
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

        if self.name == "linear":
            if num_classes is None:
                return _ridge_path(x, target, values)
            return _logistic_path(x, target, values, num_classes, self.balanced)
        if self.name == "boosting":  # without early stopping, which would hold out cases instead of patients
            boosting = HistGradientBoostingRegressor if num_classes is None else HistGradientBoostingClassifier
            return iter([boosting(early_stopping=False, random_state=self.seed).fit(x, target)])
        neighbors = KNeighborsRegressor if num_classes is None else KNeighborsClassifier
        return (neighbors(value).fit(x, target) for value in values)


def regularisations(probe: Probe, num_classes: int | None, num_cases: int = 100) -> list[Any]:
    """The values to choose from, strongest first: C, alpha, or numbers of neighbors of so many cases."""
    if probe == "linear":
        return RIDGE_ALPHAS[::-1].tolist() if num_classes is None else LOGISTIC_CS.tolist()
    return list(dict.fromkeys(min(count, num_cases) for count in NUM_NEIGHBORS)) if probe == "knn" else [None]


def inner_folds(target: NDArray[Any], groups: NDArray[Any], num_classes: int | None, seed: int = 0) -> Folds:
    """The folds that choose a probe's regularisation: :func:`grouped_folds` whose training part has several classes."""
    folds = grouped_folds(target, groups, num_classes, seed)
    return [fold for fold in folds if num_classes is None or len(np.unique(target[fold[0]])) > 1]


def grouped_folds(target: NDArray[Any], groups: NDArray[Any], num_classes: int | None, seed: int = 0) -> Folds:
    """Up to 5 folds of patients, with classes as balanced as possible; none if the rarest class has one patient."""
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


def _logistic_path(
    x: Floats, target: NDArray[Any], values: Sequence[float], num_classes: int, balanced: bool
) -> Iterator[Any]:
    """Logistic regressions, each from the weights of the one before."""
    from scipy.linalg import solve_triangular
    from sklearn.linear_model import LogisticRegression

    is_wide = x.shape[1] > len(x)
    coordinates = _coordinates(x) if is_wide else x
    num_weights = coordinates.shape[1] * (num_classes if num_classes > 2 else 1)
    solver = "newton-cholesky" if num_weights <= np.clip(len(x) // 4, *_FOR_CHOLESKY) else "newton-cg"
    model = LogisticRegression(
        solver=solver, tol=_TOLERANCE, max_iter=2000, warm_start=True, class_weight="balanced" if balanced else None
    )
    for value in values:
        model.set_params(C=value).fit(coordinates, target)
        fitted = copy(model)
        if is_wide:
            fitted.coef_ = solve_triangular(coordinates, model.coef_.T, trans="T", lower=True).T @ x
            fitted.n_features_in_ = x.shape[1]
        yield fitted


def _coordinates(x: Floats) -> Floats:
    """Coordinates ``[N, N]`` of cases ``[N, D]`` with the same products, so that penalised models predict the same."""
    from scipy.linalg import cholesky

    products = x @ x.T
    products[np.diag_indices_from(products)] += 1e-13 * max(np.trace(products), 1e-9)  # N cases span less than N axes
    return np.asarray(cholesky(products, lower=True))


def _ridge_path(x: Floats, target: NDArray[Any], values: Sequence[float]) -> Iterator[Any]:
    """Ridge regressions for all values at once, each as a target of its own."""
    from sklearn.linear_model import Ridge

    every = Ridge(alpha=np.array(values)).fit(x, np.tile(target[:, None], len(values)))
    coefficients, intercepts = np.atleast_2d(every.coef_), np.atleast_1d(every.intercept_)
    for value, coefficient, intercept in zip(values, coefficients, intercepts, strict=True):
        model = copy(every).set_params(alpha=value)
        model.coef_, model.intercept_ = coefficient, intercept
        yield model


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


# -- features to probe: z_sem, tables of features, and baselines computed from images -------------------------------


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of the cases of a table of embeddings."""

    name: str  #: the name in results
    is_available: NDArray[np.bool_]  #: ``[N]``, whether a case of the table has the features
    #: maps the positions of the training cases to the features ``[N, D]`` of all cases; whatever is fitted to data,
    #: such as principal components, is fitted to these training cases. Values of cases without the features are
    #: arbitrary
    extract: Extract
    standardise: bool = True  #: whether a probe scales each feature to a standard deviation of 1
    columns: tuple[str, ...] = ()  #: the names of the features, if they have any

    @classmethod
    def from_values(
        cls,
        name: str,
        values: NDArray[Any],
        is_available: NDArray[np.bool_] | None = None,
        columns: Sequence[str] = (),
        standardise: bool = True,
    ) -> FeatureSet:
        """Given features ``[N, D]``; nothing is fitted."""
        x = np.asarray(values, np.float64)
        is_available = np.ones(len(x), bool) if is_available is None else is_available
        if x.ndim != 2 or x.shape[1] == 0:
            raise ConfigError(f"{name}: has no features; give one row per case and one column per feature")
        is_usable = np.abs(x[is_available]) <= _LARGEST  # False for NaN
        if not is_usable.all():
            count = int((~is_usable).any(axis=1).sum())
            raise ConfigError(
                f"{name}: the features of {count} cases contain values that are missing, infinite or too large; fill "
                "them in, or remove these cases from the table"
            )
        return cls(name, is_available, lambda train: x, standardise, tuple(columns))

    def harmonized(self, scanners: NDArray[np.str_]) -> FeatureSet:
        """The features without what scanners ``[N]`` add, fitted to the training cases; arbitrary on other scanners."""
        none = np.empty((len(scanners), 0))
        return replace(
            self,
            name=f"{self.name}, harmonized",
            extract=lambda train: harmonized(
                np.nan_to_num(self.extract(train)),
                np.where(np.isin(scanners, scanners[train]), scanners, scanners[train[0]]),
                none,
                train,
            ),
        )

    @classmethod
    def pca(
        cls, images: NDArray[Any], dims: int, is_available: NDArray[np.bool_] | None = None, name: str = PCA_NAME
    ) -> FeatureSet:
        """Principal components of the pixels of images ``[N, ...]``, fitted to the training cases only."""
        is_available = np.ones(len(images), bool) if is_available is None else is_available
        cache: dict[bytes, Floats] = {}  # targets without missing labels have the same training cases

        def extract(train: NDArray[np.intp]) -> Floats:
            key = np.sort(train).tobytes()
            if key not in cache:
                cache.clear()
                components = pca_features(images[train], images[is_available], dims)[1]
                x = np.full((len(images), components.shape[1]), np.nan)
                x[is_available] = components
                cache[key] = x
            return cache[key]

        return cls(name, is_available, extract, standardise=False)

    @classmethod
    def together(cls, parts: Sequence[FeatureSet]) -> FeatureSet:
        """Several sets side by side, each scaled to the same total variance among the training cases.

        Example:
            >>> one, two = (FeatureSet.from_values(name, np.eye(4) * scale) for name, scale in (("a", 1), ("b", 9)))
            >>> both = FeatureSet.together([one, two])
            >>> both.name, both.extract(np.arange(4)).shape
            ('a + b', (4, 8))
        """

        def extract(train: NDArray[np.intp]) -> Floats:
            scaled = []
            for part in parts:
                x = part.extract(train)
                std = x[train].std(axis=0)
                x = x / np.where(std > 0, std, 1) if part.standardise else x
                scaled.append(x / (np.sqrt(x[train].var(axis=0).sum()) or 1.0))
            num = sum(x.shape[1] for x in scaled)
            return np.concatenate(scaled, axis=1) * np.sqrt(num / len(scaled))  # so that the mean variance is 1

        is_available = np.logical_and.reduce([part.is_available for part in parts])
        return cls(" + ".join(part.name for part in parts), is_available, extract, standardise=False)


def intensity_statistics(images: NDArray[np.floating[Any]]) -> Floats:
    """Mean, standard deviation, skewness, kurtosis and deciles of each channel: ``[N, C, *S]`` -> ``[N, C * 13]``.

    Example:
        >>> intensity_statistics(np.arange(32.0).reshape(2, 1, 4, 4)).shape
        (2, 13)
    """
    from scipy import stats

    def statistics(image: NDArray[Any]) -> Floats:
        pixels = image.reshape(len(image), -1).astype(np.float64)
        moments = [pixels.mean(axis=1), pixels.std(axis=1), stats.skew(pixels, axis=1), stats.kurtosis(pixels, axis=1)]
        return np.nan_to_num(np.stack([*moments, *np.percentile(pixels, _DECILES, axis=1)])).ravel()

    return np.stack([statistics(image) for image in images])
