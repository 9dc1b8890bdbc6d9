"""Directions in z_sem: a line through normalised z_sem for one label, along which cases are graded and edited."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.direction_content import FORMAT, VERSION, checked_content
from monai_diffae.latents.statistics import Codes, LatentStatistics, checked_codes
from monai_diffae.latents.targets import Kind, class_name, missing, rest_of

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Along = Literal["pattern", "weight"]

_NUM_MARKS, _MARK_TOLERANCE = 3, 1e-3


@dataclass(frozen=True, eq=False)
class Direction:
    """A line through normalised z_sem for one label, fitted by :func:`~monai_diffae.latents.fit_direction`.

    The signed distance of a case is ``z_norm @ weight + intercept``. It is 0 on the plane between two classes, or at
    the training mean if the label is a number. An edit moves a case along ``pattern``: the mean difference in
    normalised z_sem between training cases whose distances differ by 1 (Haufe et al. 2014). The official code of
    Diff-AE (Preechakul et al., CVPR 2022, arXiv 2111.15640, section 4.2) moves a case along ``weight`` itself, by
    ``amplitude * sqrt(D) * weight`` with an amplitude of about 0.3. But a classifier's weight also cancels components
    that are irrelevant to the label, and so points to regions without cases. Here the step is ``strength * std``: the
    strength counts standard deviations of the training cases, for any label, and changes the distance equally along
    both lines.

    Attributes:
        target: name of the label.
        kind: ``binary`` or ``continuous``.
        classes: the negative and the positive class; None for a number.
        weight: ``[D]``, of length 1.
        pattern: ``[D]``; its dot product with ``weight`` is 1.
        intercept: intercept of the signed distance.
        slope: above 0. Two classes: ``logit = slope * distance + offset``; a number: ``value = slope * distance +
            offset``.
        offset: the logit at a distance of 0, which imbalanced training cases shift; the value at the training mean.
        std: standard deviation of the training cases' signed distances.
        statistics: the statistics that normalise z_sem.
        model: SHA-256 of the autoencoder's weights.
        regularisation: chosen by cross-validation: C of the logistic regression, or alpha of the ridge regression.
        score: AUROC or R2 of nested cross-validation over patients.
        num_cases: number of cases that the direction was fitted to.
        num_omitted: number of cases without the label.
        low: lower end of the score's 95% interval; None if it is not known.
        high: upper end.
        fitted_marks: ``[K, 3]``, three numbers for each case that the direction was fitted to, by which
            :meth:`is_fitted_to` recognises it.
        preprocessing: SHA-256 of the preprocessing of the scans; None: unknown.

    Example:
        >>> direction = Direction(
        ...     "age", "continuous", None, np.array([0.6, 0.8]), np.array([1.0, 0.5]), 0.0, 10.0, 50.0,
        ...     2.0, LatentStatistics(np.zeros(2), np.ones(2)), "a" * 64, 1.0, 0.9, 100, 0,
        ... )
        >>> z = np.array([[0.0, 0.0]])
        >>> direction.predict(z), direction.predict(direction.move(z, 1.5))
        (array([50.]), array([80.]))
        >>> Direction.from_json(direction.to_json()).to_json() == direction.to_json()
        True
    """

    target: str
    kind: Kind
    classes: tuple[str, str] | None
    weight: Floats
    pattern: Floats
    intercept: float
    slope: float
    offset: float
    std: float
    statistics: LatentStatistics
    model: str
    regularisation: float
    score: float
    num_cases: int
    num_omitted: int
    preprocessing: str | None = None
    low: float | None = None
    high: float | None = None
    fitted_marks: Floats = field(default_factory=lambda: np.empty((0, _NUM_MARKS)))

    @property
    def score_text(self) -> str:
        """The score in words: AUROC or R2, with its interval if that is known."""
        interval = "" if self.low is None else f" (95 % interval {self.low:.3f} to {self.high:.3f})"
        return f"{'AUROC' if self.kind == 'binary' else 'R2'} {self.score:.3f}{interval}"

    @property
    def may_be_chance(self) -> bool:
        """Whether the score's interval includes chance, .5 or 0, or lies below; False if it is not known."""
        return self.low is not None and self.low <= (0.5 if self.kind == "binary" else 0)

    def warn_if_chance(self) -> None:
        """Log a warning if z_sem may not predict the label, so that the direction says nothing about it."""
        if self.may_be_chance:
            logger.warning(
                "direction '%s': its cross-validated %s includes chance, so z_sem may not predict the label, and what "
                "changes along the direction says nothing about it; label more patients, or train longer",
                self.target[:60], self.score_text,
            )  # fmt: skip

    def is_fitted_to(self, z: ArrayLike) -> NDArray[np.bool_]:
        """Whether the direction was fitted to each case ``[N]``, recognised by its z_sem up to rounding.

        Args:
            z: ``[N, D]``, not normalised.

        Raises:
            ConfigError: the shape differs, or a value is not finite.
        """
        from scipy.spatial import KDTree

        codes = checked_codes(z, self.statistics.z_channels, num_least=0).astype(np.float64)
        if not len(self.fitted_marks) or not len(codes):
            return np.zeros(len(codes), bool)
        marks = case_marks(self.statistics.normalise(codes))
        return KDTree(self.fitted_marks).query(marks, distance_upper_bound=_MARK_TOLERANCE)[0] < np.inf

    def distance(self, z: ArrayLike) -> Floats:
        """Return the signed distance ``[N]`` of each case, in normalised z_sem.

        Args:
            z: ``[N, D]``, not normalised.

        Raises:
            ConfigError: the shape differs, or a value is not finite.
        """
        codes = checked_codes(z, self.statistics.z_channels, num_least=0)
        return self.statistics.normalise(codes.astype(np.float64)) @ self.weight + self.intercept

    def predict(self, z: ArrayLike) -> Floats:
        """Return the probability of the positive class, or the value, of each case: ``[N]``.

        The probability assumes that both classes are equally frequent, so it is no risk of a disease.

        Args:
            z: ``[N, D]``, not normalised.

        Raises:
            ConfigError: the shape differs, or a value is not finite.
        """
        from scipy.special import expit

        output = self.slope * self.distance(z) + self.offset
        return np.asarray(expit(output)) if self.kind == "binary" else output

    def line(self, along: Along) -> Floats:
        """Return the vector ``[D]`` that an edit adds to normalised z_sem to increase the distance by 1.

        Raises:
            ConfigError: ``along`` is neither ``pattern`` nor ``weight``.
        """
        if along not in get_args(Along):
            raise ConfigError(f"along: {along!r} is not one of {', '.join(get_args(Along))}")
        return self.pattern if along == "pattern" else self.weight

    def move(self, z: ArrayLike, strength: float, along: Along = "pattern") -> Codes:
        """Move z_sem by ``strength`` standard deviations of the training cases, towards the positive class or up.

        Args:
            z: ``[N, D]`` or ``[D]``, not normalised.
            strength: usually -3 to 3; strength 0 returns z bit by bit.
            along: ``pattern``, as training cases differ; ``weight``, as in the paper.

        Returns:
            The moved z_sem, in the shape and dtype of ``z``.

        Raises:
            ConfigError: the strength or a value is not finite, or the shape differs.
        """
        if not np.isfinite(strength):
            raise ConfigError(f"strength: {strength} is not finite; choose a number such as -3 to 3")
        return self.statistics.moved(z, strength * self.std * self.line(along))

    def truth(self, labels: Sequence[Any]) -> Floats:
        """Return what :meth:`predict` should return for labels: 1 and 0 for the two classes, or the numbers; ``[N]``.

        Raises:
            ConfigError: a label is missing, belongs to another class, or is not a number.
        """
        if missing(labels).any():
            raise ConfigError(f"target '{self.target}': some cases have no label; omit them")
        if self.classes is None:
            try:
                return np.array(labels, np.float64)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"target '{self.target}': some labels are not numbers; omit these cases") from error
        negative, positive = self.classes
        names = np.array([class_name(label) for label in labels], dtype=object)
        unknown = sorted(set(names) - {negative, positive})
        if unknown and negative != rest_of(positive):
            raise ConfigError(
                f"target '{self.target}': the class '{unknown[0]}' is neither '{negative}' nor '{positive}', the "
                "classes that the direction was fitted to; omit its cases"
            )
        return (names == positive).astype(np.float64)

    def check_fits(self, model_sha256: str, z_channels: int, preprocessing: str | None = None) -> None:
        """Refuse a model other than the one whose z_sem the direction was fitted to; warn of another preprocessing.

        The statistics are not compared: the direction brings its own, and is valid for any cohort of its model.

        Args:
            model_sha256: SHA-256 of the model's weights.
            z_channels: size of the model's z_sem.
            preprocessing: SHA-256 of the preprocessing of the scans; None: unknown.

        Raises:
            ConfigError: the size or the weights differ.
        """
        if z_channels != self.statistics.z_channels:
            raise ConfigError(
                f"direction '{self.target}': is for z_sem of {self.statistics.z_channels} numbers, but this model has "
                f"{z_channels}; fit it again to this model's embeddings"
            )
        if model_sha256 != self.model:
            raise ConfigError(
                f"direction '{self.target}': was fitted to another model ({self.model[:8]}, this one is "
                f"{model_sha256[:8]}); fit it again to this model's embeddings"
            )
        if None not in (preprocessing, self.preprocessing) and preprocessing != self.preprocessing:
            logger.warning(
                "direction '%s': was fitted to scans that were preprocessed in another way than here, so it does not "
                "fit their z_sem; use the same overrides, or fit it again",
                self.target[:60],
            )

    def to_json(self) -> dict[str, Any]:
        """Return the content of a direction file, without any loss of precision."""
        return {
            "format": FORMAT, "version": VERSION,
            "target": self.target, "kind": self.kind, "classes": None if self.classes is None else list(self.classes),
            "weight": self.weight.tolist(), "pattern": self.pattern.tolist(),
            "intercept": self.intercept, "slope": self.slope, "offset": self.offset, "std": self.std,
            "statistics": {"mean": self.statistics.mean.tolist(), "std": self.statistics.std.tolist()},
            "model": self.model, "regularisation": self.regularisation, "score": self.score,
            "low": self.low, "high": self.high, "fitted_marks": self.fitted_marks.tolist(),
            "num_cases": self.num_cases, "num_omitted": self.num_omitted, "preprocessing": self.preprocessing,
        }  # fmt: skip

    @classmethod
    def from_json(cls, content: object) -> Direction:
        """Undo :meth:`to_json`.

        Raises:
            ConfigError: a key is missing or unknown, the version differs, or a value has the wrong type, length or
                range.
        """
        return cls(**checked_content(content))


def case_marks(z_norm: NDArray[np.floating[Any]]) -> Floats:
    """Three numbers ``[N, 3]`` by which cases are recognised: random projections of normalised z_sem, rounded."""
    projection = np.random.default_rng(0).normal(size=(z_norm.shape[1], _NUM_MARKS))
    return np.round(z_norm @ projection / z_norm.shape[1] ** 0.5, 4)
