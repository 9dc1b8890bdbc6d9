"""Probes: how much a linear model can read off features about a target, on cases that it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError

Floats = NDArray[np.float64]

# strengths of regularisation that cross-validation chooses from
RIDGE_ALPHAS = np.logspace(-3, 6, 19)
LOGISTIC_CS = np.logspace(-4, 2, 7)
_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class ProbeResult:
    """A probe's score on the test cases.

    Attributes:
        metric: ``r2`` or ``auroc``.
        score: on all test cases.
        low: lower end of the 95% interval, from a bootstrap over test cases (or patients).
        high: its upper end.
        num_train: cases that the probe was fitted to.
        num_test: cases that it was judged on.
        strength: of the regularisation that cross-validation chose: ridge's alpha, or logistic regression's C.
    """

    metric: str
    score: float
    low: float
    high: float
    num_train: int
    num_test: int
    strength: float


def ridge_probe(
    features_train: ArrayLike,
    target_train: ArrayLike,
    features_test: ArrayLike,
    target_test: ArrayLike,
    *,
    groups_test: Sequence[Any] | None = None,
    seed: int = 0,
) -> ProbeResult:
    """R2 of a ridge regression from standardised features to a continuous target.

    Args:
        features_train: ``[N, D]``.
        target_train: ``[N]``.
        features_test: ``[M, D]``.
        target_test: ``[M]``.
        groups_test: ``[M]``, such as patients: the bootstrap then draws groups instead of cases.
        seed: of the bootstrap.

    Raises:
        ConfigError: too few cases, values that are not finite, or a target that is constant.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(300, 3))
        >>> result = ridge_probe(x[:200], x[:200, 0], x[200:], x[200:, 0])
        >>> round(result.score, 2), result.low <= result.score <= result.high
        (1.0, True)
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x_train, x_test = _features(features_train, features_test)
    y_train, y_test = np.asarray(target_train, np.float64), np.asarray(target_test, np.float64)
    _check_sizes(x_train, y_train, x_test, y_test)
    if not (np.isfinite(y_train).all() and np.isfinite(y_test).all()):
        raise ConfigError("probe: the target holds values that are not finite; leave out those cases")
    if np.ptp(y_train) == 0 or np.ptp(y_test) == 0:
        raise ConfigError("probe: the target is the same for all cases; choose one that varies")
    model = make_pipeline(StandardScaler(), RidgeCV(RIDGE_ALPHAS)).fit(x_train, y_train)
    predicted = model.predict(x_test)
    score, low, high = _with_interval(lambda w: _r2(y_test, predicted, w), len(y_test), groups_test, seed)
    return ProbeResult("r2", score, low, high, len(y_train), len(y_test), float(model[-1].alpha_))


def classifier_probe(
    features_train: ArrayLike,
    target_train: ArrayLike,
    features_test: ArrayLike,
    target_test: ArrayLike,
    *,
    groups_test: Sequence[Any] | None = None,
    seed: int = 0,
) -> ProbeResult:
    """AUROC of a logistic regression with balanced class weights; of several classes the mean, one against the rest.

    Args:
        features_train: ``[N, D]``.
        target_train: ``[N]``, numbers or text.
        features_test: ``[M, D]``.
        target_test: ``[M]``, of the same classes.
        groups_test: ``[M]``, such as patients: the bootstrap then draws groups instead of cases.
        seed: of the folds and of the bootstrap.

    Raises:
        ConfigError: too few cases, a single class, or a class with fewer than two training cases.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(300, 3))
        >>> result = classifier_probe(x[:200], x[:200, 0] > 0, x[200:], x[200:, 0] > 0)
        >>> result.score > 0.99
        True
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x_train, x_test = _features(features_train, features_test)
    y_train, y_test = np.asarray(target_train), np.asarray(target_test)
    _check_sizes(x_train, y_train, x_test, y_test)
    classes, counts = np.unique(y_train, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise ConfigError(
            "probe: training needs two classes or more, each with two cases or more; choose another target"
        )
    if not np.isin(y_test, classes).all() or len(np.unique(y_test)) < 2:
        raise ConfigError("probe: the test cases must be of two classes or more that training has too")
    scoring = "roc_auc" if len(classes) == 2 else "roc_auc_ovr"
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000)),
        {"logisticregression__C": LOGISTIC_CS},
        scoring=scoring,
        cv=StratifiedKFold(min(5, int(counts.min())), shuffle=True, random_state=seed),
    ).fit(x_train, y_train)
    ranked = _ranked(y_test, search.predict_proba(x_test), classes)
    score, low, high = _with_interval(lambda w: _auroc(ranked, w), len(y_test), groups_test, seed)
    strength = float(search.best_params_["logisticregression__C"])
    return ProbeResult("auroc", score, low, high, len(y_train), len(y_test), strength)


def score_with_interval(
    metric: Literal["auroc", "r2"],
    target: ArrayLike,
    predicted: ArrayLike,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> tuple[float, float, float]:
    """How well predictions that are there already tell a target, and the 95% interval from a bootstrap.

    Args:
        metric: ``auroc``, of a target of 0 and 1 and anything that ranks the cases, or ``r2``.
        target: ``[N]``.
        predicted: ``[N]``.
        groups: ``[N]``, such as patients: the bootstrap then draws groups instead of cases.
        seed: of the bootstrap.

    Returns:
        The score, and the lower and upper end.

    Raises:
        ConfigError: numbers of cases that differ, or a target that is the same for all cases.

    Example:
        >>> score_with_interval("auroc", [0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
        (1.0, 1.0, 1.0)
    """
    y, scored = np.asarray(target, np.float64), np.asarray(predicted, np.float64)
    if y.shape != scored.shape or y.ndim != 1:
        raise ConfigError("score: as many predictions as targets are needed")
    if len(y) == 0 or np.ptp(y) == 0:
        raise ConfigError("score: the target is the same for all cases; choose cases in which it varies")
    if metric == "r2":
        return _with_interval(lambda w: _r2(y, scored, w), len(y), groups, seed)
    ranked = [(y, np.unique(scored, return_inverse=True)[1])]
    return _with_interval(lambda w: _auroc(ranked, w), len(y), groups, seed)


def pca_features(images_train: ArrayLike, images_test: ArrayLike, dims: int) -> tuple[Floats, Floats]:
    """What a probe should be compared with: the principal components of the pixels, fitted to the training images.

    Args:
        images_train: ``[N, ...]``.
        images_test: ``[M, ...]``, of the same shape each.
        dims: components; fewer where there are not as many images or pixels.

    Returns:
        ``[N, dims]`` and ``[M, dims]``.

    Example:
        >>> images = np.random.default_rng(0).normal(size=(20, 1, 4, 4))
        >>> [features.shape for features in pca_features(images[:15], images[15:], 8)]
        [(15, 8), (5, 8)]
    """
    from sklearn.decomposition import PCA

    train, test = (np.asarray(images, np.float64).reshape(len(images), -1) for images in (images_train, images_test))  # type: ignore[arg-type]
    pca = PCA(min(dims, *train.shape), random_state=0).fit(train)
    return pca.transform(train), pca.transform(test)


def _features(train: ArrayLike, test: ArrayLike) -> tuple[Floats, Floats]:
    x_train, x_test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    if not (np.isfinite(x_train).all() and np.isfinite(x_test).all()):
        raise ConfigError("probe: the features hold values that are not finite; embed again")
    return x_train, x_test


def _check_sizes(x_train: Floats, y_train: NDArray[Any], x_test: Floats, y_test: NDArray[Any]) -> None:
    if len(x_train) != len(y_train) or len(x_test) != len(y_test):
        raise ConfigError("probe: as many targets as features are needed")
    if len(y_train) < 4 or len(y_test) < 2:
        raise ConfigError(
            f"probe: {len(y_train)} training and {len(y_test)} test cases are too few; 4 and 2 are the least"
        )


def _r2(target: Floats, predicted: Floats, weights: Floats) -> float:
    mean = np.average(target, weights=weights)
    spread = float(weights @ (target - mean) ** 2)
    return 1 - float(weights @ (target - predicted) ** 2) / spread if spread > 0 else float("nan")


def _ranked(target: NDArray[Any], probabilities: Floats, classes: NDArray[Any]) -> list[tuple[Floats, NDArray[Any]]]:
    """For each class that is judged: whether a case is of it, and the rank of the case's probability."""
    judged = [len(classes) - 1] if len(classes) == 2 else range(len(classes))
    return [
        ((target == classes[k]).astype(np.float64), np.unique(probabilities[:, k], return_inverse=True)[1])
        for k in judged
    ]


def _auroc(ranked: list[tuple[Floats, NDArray[Any]]], weights: Floats) -> float:
    """The mean AUROC of the classes that the weighted cases have; ties count half. 50 times faster than sklearn's."""
    scores = []
    for is_class, rank in ranked:
        inside, outside = np.bincount(rank, weights * is_class), np.bincount(rank, weights * (1 - is_class))
        pairs = inside.sum() * outside.sum()
        if pairs > 0:
            scores.append(inside @ (np.cumsum(outside) - outside / 2) / pairs)
    return float(np.mean(scores)) if scores else float("nan")


def _with_interval(
    score: Callable[[Floats], float], num_cases: int, groups: Sequence[Any] | None, seed: int
) -> tuple[float, float, float]:
    """The score with equal weights, and the 2.5 and 97.5 percentiles over resampled groups."""
    labels = np.arange(num_cases) if groups is None else np.asarray(groups)
    _, member = np.unique(labels, return_inverse=True)
    num_groups = int(member.max()) + 1
    generator = np.random.default_rng(seed)
    draws = (
        np.bincount(generator.integers(num_groups, size=num_groups), minlength=num_groups) for _ in range(_BOOTSTRAPS)
    )
    scores = [score(draw[member].astype(np.float64)) for draw in draws]
    low, high = np.nanpercentile(scores, [2.5, 97.5]) if not np.isnan(scores).all() else (float("nan"),) * 2
    return score(np.ones(num_cases)), float(low), float(high)
