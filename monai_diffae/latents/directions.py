"""Directions in z_sem: along which line normalised z_sem says more of a label, and how far each case is on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.direction_content import FORMAT, VERSION, checked_content
from monai_diffae.latents.statistics import Codes, LatentStatistics, checked_codes
from monai_diffae.latents.targets import Kind, class_name, missing, rest_of

Floats = NDArray[np.float64]
Along = Literal["pattern", "weight"]


@dataclass(frozen=True, eq=False)
class Direction:
    """A line through normalised z_sem for one label; made by :func:`~monai_diffae.latents.fit_direction`.

    A case's signed distance is ``z_norm @ weight + intercept``: 0 on the plane between two classes, or at the training
    mean for a number. An edit moves a case along ``pattern``: how normalised z_sem differs, on average, between
    training cases whose distance differs by 1 (Haufe et al. 2014). The official code of Diff-AE (Preechakul et al.,
    CVPR 2022, arXiv 2111.15640, section 4.2) moves it along ``weight`` itself, by ``amplitude * sqrt(D) * weight``,
    amplitude about 0.3; but a classifier's weight also cancels what is of no use to it, and points to where no case
    lies. Here the step is ``amount * spread``, so that an amount counts standard deviations of the training cases,
    whatever the label; it changes the distance by as much along either line.

    Attributes:
        target: the label's name.
        kind: ``binary`` or ``continuous``.
        classes: the negative and the positive class; None of a number.
        weight: ``[D]``, of length 1.
        pattern: ``[D]``; its product with ``weight`` is 1.
        intercept: of the signed distance.
        slope: above 0. Of two classes: ``logit = slope * distance + offset``; else ``value = slope * distance +
            offset``.
        offset: 0 of two classes; the value at the training mean of a number.
        spread: the standard deviation of the training cases' signed distances.
        statistics: what z_sem is normalised with.
        model: the SHA-256 of the autoencoder's weights.
        strength: of the regularisation that cross-validation chose: logistic regression's C, or ridge's alpha.
        score: AUROC or R2 of the cross-validation, the chosen strength's.
        num_cases: cases that it was fitted to.
        num_left_out: cases without the label.

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
    spread: float
    statistics: LatentStatistics
    model: str
    strength: float
    score: float
    num_cases: int
    num_left_out: int

    def distance(self, z: ArrayLike) -> Floats:
        """The signed distance of each case, in normalised z_sem: ``[N, D]`` -> ``[N]``; ``z`` is not normalised.

        Raises:
            ConfigError: another shape, or values that are not finite.
        """
        codes = checked_codes(z, self.statistics.z_channels, num_least=0)
        return self.statistics.normalise(codes.astype(np.float64)) @ self.weight + self.intercept

    def predict(self, z: ArrayLike) -> Floats:
        """The probability of the positive class, or the value: ``[N, D]`` -> ``[N]``.

        The probability is one as though both classes were as frequent.

        Raises:
            ConfigError: another shape, or values that are not finite.
        """
        from scipy.special import expit

        said = self.slope * self.distance(z) + self.offset
        return np.asarray(expit(said)) if self.kind == "binary" else said

    def line(self, along: Along) -> Floats:
        """The ``[D]`` that an edit moves normalised z_sem along; a step of 1 changes the distance by 1.

        Raises:
            ConfigError: no such line.
        """
        if along not in get_args(Along):
            raise ConfigError(f"along: {along!r} is not one of {', '.join(get_args(Along))}")
        return self.pattern if along == "pattern" else self.weight

    def move(self, z: ArrayLike, amount: float, along: Along = "pattern") -> Codes:
        """z_sem moved by ``amount`` standard deviations of the training cases, towards the positive class or more.

        Args:
            z: ``[N, D]`` or ``[D]``, not normalised.
            amount: such as -3 to 3; at 0, z comes back bit by bit.
            along: ``pattern``, as training cases differ; ``weight``, as in the paper.

        Returns:
            In the shape and dtype of ``z``.

        Raises:
            ConfigError: an amount or values that are not finite, or another shape.
        """
        if not np.isfinite(amount):
            raise ConfigError(f"amount: {amount} is not finite; choose a number such as -3 to 3")
        return self.statistics.moved(z, amount * self.spread * self.line(along))

    def truth(self, labels: Sequence[Any]) -> Floats:
        """What :meth:`predict` should say of labels: 1 and 0 for the two classes, or the numbers; ``[N]``.

        Raises:
            ConfigError: labels that are missing, of another class, or no numbers.
        """
        if missing(labels).any():
            raise ConfigError(f"target '{self.target}': some cases have no label; leave them out")
        if self.classes is None:
            try:
                return np.array(labels, np.float64)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"target '{self.target}': some labels are no numbers; leave them out") from error
        negative, positive = self.classes
        names = np.array([class_name(label) for label in labels], dtype=object)
        unknown = sorted(set(names) - {negative, positive})
        if unknown and negative != rest_of(positive):
            raise ConfigError(
                f"target '{self.target}': the class '{unknown[0]}' is neither '{negative}' nor '{positive}', which the "
                "direction was fitted to; leave it out"
            )
        return (names == positive).astype(np.float64)

    def check_fits(self, model_sha256: str, z_channels: int) -> None:
        """Refuse to be used with another model than it was fitted to.

        Its statistics are not compared: it brings its own, and fits z_sem of its model from any cohort.

        Args:
            model_sha256: the SHA-256 of the model's weights.
            z_channels: the size of its z_sem.

        Raises:
            ConfigError: another size, or other weights.
        """
        if z_channels != self.statistics.z_channels:
            raise ConfigError(
                f"direction '{self.target}': is for z_sem of {self.statistics.z_channels} numbers, this model has "
                f"{z_channels}; fit it again to this model's embeddings"
            )
        if model_sha256 != self.model:
            raise ConfigError(
                f"direction '{self.target}': was fitted to another model ({self.model[:8]}, this one is "
                f"{model_sha256[:8]}); fit it again to this model's embeddings"
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it, without any loss."""
        return {
            "format": FORMAT, "version": VERSION,
            "target": self.target, "kind": self.kind, "classes": None if self.classes is None else list(self.classes),
            "weight": self.weight.tolist(), "pattern": self.pattern.tolist(),
            "intercept": self.intercept, "slope": self.slope, "offset": self.offset,
            "spread": self.spread,
            "statistics": {"mean": self.statistics.mean.tolist(), "std": self.statistics.std.tolist()},
            "model": self.model, "strength": self.strength, "score": self.score,
            "num_cases": self.num_cases, "num_left_out": self.num_left_out,
        }  # fmt: skip

    @classmethod
    def from_json(cls, content: object) -> Direction:
        """The inverse of :meth:`to_json`.

        Raises:
            ConfigError: anything else: keys that are missing or not known, another version, wrong types or lengths,
                values that are not finite or out of range.
        """
        return cls(**checked_content(content))
