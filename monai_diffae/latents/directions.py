"""Directions in z_sem: a line through normalised z_sem for one label, along which cases are graded and edited."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, Field, ValidationError

from monai_diffae.errors import ConfigError, counted
from monai_diffae.latents.neighbors import numbered_groups
from monai_diffae.latents.probing.nested import held_out_predictions
from monai_diffae.latents.probing.probes import FittedProbe, ProbeModel, grouped_folds, regularisations
from monai_diffae.latents.probing.scores import (
    bootstrapped_mean,
    difference_interval,
    is_above_chance,
    p_value,
    with_interval,
)
from monai_diffae.latents.statistics import Codes, Floats, LatentStatistics, float64_codes
from monai_diffae.latents.targets import Kind, LabelKind, Target, class_name, missing, read_line_target, rest_of
from monai_diffae.policies import check_choice

logger = logging.getLogger(__name__)

Along = Literal["pattern", "weight"]

FORMAT, VERSION = "monai_diffae.direction", 2
_NUM_MARKS, _MARK_TOLERANCE = 3, 1e-3
_LEAST_CASES = 4
_LEAST_SLOPE = 1e-6  # used if z_sem does not predict the label: each class then has a probability of one half


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

    target: str  #: name of the label
    kind: Kind  #: ``binary`` or ``continuous``
    classes: tuple[str, str] | None  #: the negative and the positive class; None for a number
    weight: Floats  #: ``[D]``, of length 1
    pattern: Floats  #: ``[D]``; its dot product with ``weight`` is 1
    intercept: float  #: intercept of the signed distance
    #: above 0. Two classes: ``logit = slope * distance + offset``; a number: ``value = slope * distance + offset``
    slope: float
    #: the logit at a distance of 0, which imbalanced training cases shift; the value at the training mean
    offset: float
    std: float  #: standard deviation of the training cases' signed distances
    statistics: LatentStatistics  #: the statistics that normalise z_sem
    model: str  #: SHA-256 of the autoencoder's weights
    regularisation: float  #: chosen by cross-validation: C of the logistic regression, or alpha of the ridge regression
    score: float | None  #: AUROC or R2 of nested cross-validation over patients; None: unknown, as it was imported
    num_cases: int  #: number of cases that the direction was fitted to
    num_omitted: int  #: number of cases without the label
    preprocessing: str | None = None  #: SHA-256 of the preprocessing of the scans; None: unknown
    low: float | None = None  #: lower end of the score's 95% interval; None if it is not known
    high: float | None = None  #: upper end
    p: float | None = None  #: of a permutation test against chance; None: there are many patients, or it is not known
    #: ``[K, 3]``, three numbers for each case that the direction was fitted to, by which :meth:`is_fitted_to`
    #: recognises it
    fitted_marks: Floats = field(default_factory=lambda: np.empty((0, _NUM_MARKS)))

    @property
    def score_text(self) -> str:
        """The score in words: AUROC or R2, with its interval if that is known."""
        if self.score is None:
            return "score unknown"
        p = "" if self.p is None else f", p = {self.p:.2g}"
        interval = "" if self.low is None else f" (95 % interval {self.low:.3f} to {self.high:.3f}{p})"
        return f"{'AUROC' if self.kind == 'binary' else 'R2'} {self.score:.3f}{interval}"

    @property
    def may_be_chance(self) -> bool:
        """Whether the score may be that of chance, .5 or 0; False if its interval is not known."""
        row = {"metric": "auroc" if self.kind == "binary" else "r2", "score": self.score, "low": self.low, "p": self.p}
        return self.low is not None and not is_above_chance(row)

    def warn_if_chance(self) -> None:
        """Log a warning if z_sem may not predict the label, so that the direction says nothing about it."""
        if self.may_be_chance:
            logger.warning(
                "direction '%s': its cross-validated %s may be chance, so z_sem may not predict the label, and what "
                "changes along the direction says nothing about it; label more patients, or train longer",
                self.target[:60],
                self.score_text,
            )

    def is_fitted_to(self, z: ArrayLike) -> NDArray[np.bool_]:
        """Whether the direction was fitted to each case ``[N]``, recognised by its z_sem ``[N, D]`` up to rounding."""
        codes = float64_codes(z, self.statistics.z_channels, num_least=0)
        return are_marked(self.statistics.normalise(codes), self.fitted_marks)

    def distance(self, z: ArrayLike) -> Floats:
        """The signed distance ``[N]`` of cases ``[N, D]``, which are not normalised, in normalised z_sem."""
        codes = float64_codes(z, self.statistics.z_channels, num_least=0)
        return self.statistics.normalise(codes) @ self.weight + self.intercept

    def predict(self, z: ArrayLike) -> Floats:
        """The probability ``[N]`` of the positive class, or the value, of cases ``[N, D]``, which are not normalised.

        The probability assumes that both classes are equally frequent, so it is no risk of a disease.
        """
        from scipy.special import expit

        output = self.slope * self.distance(z) + self.offset
        return np.asarray(expit(output)) if self.kind == "binary" else output

    @property
    def boundary(self) -> float:
        """The signed distance of a case between both classes, or at the training mean."""
        return -self.offset / self.slope if self.kind == "binary" else 0.0

    def line(self, along: Along) -> Floats:
        """The vector ``[D]`` that an edit adds to normalised z_sem to increase the distance by 1."""
        check_choice("along", along, Along)
        return self.pattern if along == "pattern" else self.weight

    def move(self, z: ArrayLike, strength: float, along: Along = "pattern") -> Codes:
        """Move z_sem by ``strength`` standard deviations of the training cases, towards the positive class or up.

        Args:
            z: ``[N, D]`` or ``[D]``, not normalised.
            strength: usually -3 to 3; strength 0 returns z bit by bit.
            along: ``pattern``, as training cases differ; ``weight``, as in the paper.

        Returns:
            The moved z_sem, in the shape and dtype of ``z``.
        """
        return self.statistics.moved(z, strength * self.std * self.line(along))

    def truth(self, labels: Sequence[Any]) -> Floats:
        """What :meth:`predict` should return for labels: 1 and 0 for the two classes, or the numbers; ``[N]``."""
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
        """
        size = self.statistics.z_channels
        if size != z_channels or model_sha256 != self.model:
            raise ConfigError(
                f"direction '{self.target}': was fitted to another model ({self.model[:8]} with z_sem of {size} "
                f"numbers; this one is {model_sha256[:8]} with {z_channels}); fit it again to this model's embeddings"
            )
        if None not in (preprocessing, self.preprocessing) and preprocessing != self.preprocessing:
            logger.warning(
                "direction '%s': was fitted to scans that were preprocessed in another way than here, so it does not "
                "fit their z_sem; use the same overrides, or fit it again",
                self.target[:60],
            )

    def to_json(self) -> dict[str, Any]:
        """Return the content of a direction file, without any loss of precision."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["statistics"] = {"mean": self.statistics.mean.tolist(), "std": self.statistics.std.tolist()}
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
        plain["classes"] = None if self.classes is None else list(self.classes)
        return {"format": FORMAT, "version": VERSION, **plain}

    @classmethod
    def from_json(cls, content: object) -> "Direction":
        """Undo :meth:`to_json`.

        Raises:
            ConfigError: a key is missing or unknown, the version differs, or a value has the wrong type, length or
                range.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ConfigError("not a direction; make one with monai-diffae fit-direction")
        try:
            values = _Content.model_validate(content).model_dump(exclude={"format", "version"})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))[:60]
            raise ConfigError(f"{key}: {first['msg'].lower()}; fit the direction again") from error
        values |= {name: np.array(values[name], np.float64) for name in ("weight", "pattern", "fitted_marks")}
        values["fitted_marks"] = values["fitted_marks"].reshape(-1, _NUM_MARKS)
        values["statistics"] = LatentStatistics(**values["statistics"])
        values["classes"] = None if values["classes"] is None else tuple(values["classes"])
        direction = cls(**values)
        if not direction._is_consistent():
            raise ConfigError("weight: does not fit the pattern, statistics or classes; fit the direction again")
        return direction

    def _is_consistent(self) -> bool:
        weight, pattern, kind = self.weight, self.pattern, "continuous" if self.classes is None else "binary"
        sizes = {len(weight), len(pattern), self.statistics.z_channels}
        if len(sizes) > 1 or kind != self.kind or len(set(self.classes or "ab")) < 2:
            return False
        return bool(abs(np.linalg.norm(weight) - 1) < 1e-6 and abs(pattern @ weight - 1) < 1e-6)


class _Statistics(BaseModel, strict=True, extra="forbid", allow_inf_nan=False):
    mean: list[float]
    std: list[float]


class _Content(BaseModel, strict=True, extra="forbid", allow_inf_nan=False):
    """The content of a direction file. Such files travel between people and machines, so every value is checked."""

    format: str
    version: Literal[2]  # VERSION
    target: Annotated[str, Field(min_length=1)]
    kind: Kind
    classes: Annotated[list[str], Field(min_length=2, max_length=2)] | None
    weight: list[float]
    pattern: list[float]
    intercept: float
    slope: Annotated[float, Field(gt=0)]
    offset: float
    std: Annotated[float, Field(gt=0)]
    statistics: _Statistics
    model: Annotated[str, Field(min_length=1)]
    regularisation: Annotated[float, Field(gt=0)]
    score: float | None
    low: float | None
    high: float | None
    p: float | None = None
    fitted_marks: list[Annotated[list[float], Field(min_length=_NUM_MARKS, max_length=_NUM_MARKS)]]
    num_cases: Annotated[int, Field(ge=0)]
    num_omitted: Annotated[int, Field(ge=0)]
    preprocessing: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


def case_marks(z_norm: NDArray[np.floating[Any]], num_marks: int = _NUM_MARKS) -> Floats:
    """A few numbers ``[N, K]`` by which cases are recognised: random projections of normalised z_sem, rounded."""
    projection = np.random.default_rng(0).normal(size=(z_norm.shape[1], num_marks))
    return np.round(z_norm @ projection / z_norm.shape[1] ** 0.5, 4)


def are_marked(
    z_norm: NDArray[np.floating[Any]], marks: Floats, tolerance: float = _MARK_TOLERANCE
) -> NDArray[np.bool_]:
    """Whether each case ``[N, D]`` has one of the marks ``[M, K]`` of :func:`case_marks`, up to a distance."""
    from scipy.spatial import KDTree

    if not len(marks) or not len(z_norm):
        return np.zeros(len(z_norm), bool)
    own = case_marks(z_norm, marks.shape[1])
    return np.asarray(KDTree(marks).query(own, distance_upper_bound=tolerance)[0] < np.inf)


def fit_direction(
    z: ArrayLike,
    labels: Sequence[Any],
    *,
    target: str,
    model: str,
    groups: Sequence[Any] | None = None,
    positive: Any = None,
    kind: LabelKind = "auto",
    max_cases: int | None = None,
    seed: int = 0,
) -> Direction:
    """Fit the direction in z_sem along which a label increases.

    Labels with two values are fitted by logistic regression with balanced class weights, numbers with more values by
    ridge regression, both on normalised z_sem (the linear classifier of Diff-AE, Preechakul et al., CVPR 2022, section
    4.2). The regularisation is the one with the smallest (balanced) log loss or squared error in up to 5 folds, which
    keep the cases of a group together. The score is that of nested cross-validation: each case is predicted by a
    direction that was fitted, and whose regularisation was chosen, without its group. With two classes, slope and
    offset are fitted to these out-of-fold distances, so that probabilities are not overfitted to the training cases.

    Args:
        z: z_sem of the training cases ``[N, D]``, not normalised, including cases without a label.
        labels: ``[N]``, numbers, booleans or text; None, NaN and blank text mean that a case has no label.
        target: name of the label.
        model: SHA-256 of the autoencoder's weights.
        groups: ``[N]``, e.g. patients; no group is in both the training and the test part of a fold. None: every case
            is its own group.
        positive: the class that the direction points to; with more than two values, all other values form the negative
            class. None: the larger number, or the text that sorts last.
        kind: ``classes``, ``numbers``, or ``auto``; see :func:`~monai_diffae.latents.targets.read_line_target`.
        max_cases: use at most this many labelled cases, equally many per class as far as possible.
        seed: random seed of the folds and of the choice of ``max_cases``.

    Raises:
        ConfigError: the numbers of cases differ, the labels give no direction (one value only, text with several
            classes without ``positive``, fewer than 4 cases, or fewer than 2 cases or groups of a class), or z_sem is
            not finite or never varies.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(200, 3))
        >>> direction = fit_direction(z, z[:, 0] > 0, target="large", model="a" * 64)
        >>> direction.classes, direction.score > 0.98, bool(direction.weight[0] > 0.95)
        (('False', 'True'), True, True)
        >>> bool(direction.predict(direction.move(z[:1], 5))[0] > direction.predict(z[:1])[0])
        True
    """
    codes = float64_codes(z, num_least=2)
    for name, values in {"labels": labels, "groups": groups}.items():
        if values is not None and len(values) != len(codes):
            raise ConfigError(
                f"{name}: there are {len(values)} for {counted(len(codes), 'case')} of z_sem; give one per case"
            )
    labelled = read_line_target(labels, target, positive, kind)
    used = labelled if max_cases is None else labelled.balanced_choice(max_cases, seed)
    members = np.arange(len(codes)) if groups is None else numbered_groups(list(groups))
    patients = numbered_groups(members[used.rows])
    _check_enough(used, patients)
    statistics = LatentStatistics.of(codes)
    z_norm = statistics.normalise(codes).astype(np.float64)
    fitted = _fitted(z_norm[used.rows], used, patients, seed)
    centred = z_norm - z_norm.mean(axis=0)
    distance = centred @ fitted["weight"]
    return Direction(
        target=target,
        kind="continuous" if used.classes is None else "binary",
        std=float(distance.std()),
        classes=used.classes,  # type: ignore[arg-type] # two
        pattern=centred.T @ distance / (distance @ distance),
        statistics=statistics,
        model=model,
        num_cases=len(used.rows),
        num_omitted=len(labels) - len(labelled.rows),
        fitted_marks=case_marks(z_norm[used.rows]),
        **fitted,
    )


def _fitted(z_norm: Floats, target: Target, groups: NDArray[np.intp], seed: int) -> dict[str, Any]:
    num_classes, y = target.num_classes, target.values
    model = ProbeModel("linear", seed, standardise=False, balanced=True)
    probe = model.fit(z_norm, y, groups, num_classes)
    weight, intercept, length = _plane(probe)
    folds = grouped_folds(y, groups, num_classes, seed)
    of_folds = [model.fit(z_norm[train], y[train], groups[train], num_classes) for train, _ in folds]
    if num_classes is None:
        # normalised z_sem is 0 at the training mean, so the distance is 0 there, too
        values: dict[str, Any] = {"intercept": 0.0, "slope": length, "offset": intercept * length}
    else:
        distance = np.empty(len(y))
        for fitted, (_, test) in zip(of_folds, folds, strict=True):
            fold_weight, fold_intercept, _ = _plane(fitted)
            distance[test] = z_norm[test] @ fold_weight + fold_intercept
        slope, offset = _calibration(distance, y)
        values = {"intercept": intercept, "slope": slope, "offset": offset}
    scores = held_out_predictions(of_folds, [z_norm] * len(folds), target, folds).scores()
    score, low, high = with_interval(scores, groups, seed, len(folds))
    p = p_value(scores, groups, seed, len(folds))
    strongest = regularisations("linear", num_classes)[0]
    regularisation = float(strongest if probe.regularisation is None else probe.regularisation)
    values |= {"regularisation": regularisation, "score": score, "low": low, "high": high, "p": p}
    return {"weight": weight, **values}


def _plane(probe: FittedProbe) -> tuple[Floats, float, float]:
    """The weight of length 1, the intercept in the same units, and the length that was divided by."""
    scaler, model = probe.model
    weight = np.ravel(model.coef_)
    length = float(np.linalg.norm(weight))
    if not length > 0:
        raise ConfigError("z_sem is the same for all labelled cases; label other cases")
    return weight / length, float(np.ravel(model.intercept_)[0] - weight @ scaler.mean_) / length, length


def _calibration(distance: Floats, y: NDArray[Any]) -> tuple[float, float]:
    """Fit ``logit = slope * distance + offset`` by logistic regression on one number (Platt scaling)."""
    from sklearn.linear_model import LogisticRegression

    unit = float(np.sqrt(np.mean(distance**2))) or 1.0
    model = LogisticRegression(class_weight="balanced").fit(distance[:, None] / unit, y)
    slope = float(model.coef_[0, 0]) / unit
    return (slope, float(model.intercept_[0])) if slope > _LEAST_SLOPE else (_LEAST_SLOPE, 0.0)


def _check_enough(target: Target, groups: NDArray[np.intp]) -> None:
    """Refuse too few cases or groups for a fit and a cross-validation."""
    num_cases, num_groups, patients = len(target.rows), len(np.unique(groups)), target.patients_of_classes(groups)
    if target.classes is None and (num_cases < _LEAST_CASES or num_groups < 2):
        raise ConfigError(
            f"target '{target.name}': {counted(num_cases, 'labelled case')} of {counted(num_groups, 'patient')} are "
            f"too few; at least {_LEAST_CASES} cases of 2 patients are needed"
        )
    if min(patients.values(), default=2) < 2:
        counts = np.bincount(target.values, minlength=2)
        each = zip(counts, patients.items(), strict=True)
        listed = " and ".join(f"{count} of '{label}' ({counted(num, 'patient')})" for count, (label, num) in each)
        raise ConfigError(
            f"target '{target.name}': {listed} are too few; label at least 2 cases of 2 patients of each class"
        )


# -- which labels change in counterfactuals, beyond what equally long random changes do --------------------------------


@dataclass(frozen=True)
class ChangeShare:
    """In how many cases something changes; intervals are of 95 %, over patients."""

    num_changed: int
    num_cases: int
    share: float
    low: float
    high: float
    random_share: float  # after equally long random changes
    excess: float  # share - random_share, paired
    excess_low: float
    excess_high: float

    @classmethod
    def of(cls, changed: Floats, by_chance: Floats, patients: Sequence[Any], seed: int = 0) -> "ChangeShare":
        """Count changes ``[N]``, 0 or 1, beside the shares ``[N]`` of random changes that change each case, too."""
        from scipy import stats

        excess, share = changed - by_chance, float(changed.mean())
        draws = bootstrapped_mean(excess, patients, seed)
        num, random_share = len(set(patients)), float(by_chance.mean())
        # Clopper and Pearson 1934, as if the cases of a patient were one: a bootstrap of 0 of 20 would have no width
        low = float(stats.beta.ppf(0.025, share * num, (1 - share) * num + 1)) if share > 0 else 0.0
        high = float(stats.beta.ppf(0.975, share * num + 1, (1 - share) * num)) if share < 1 else 1.0
        excess_low, excess_high = difference_interval(float(excess.mean()), draws, num)
        return cls(
            int(changed.sum()),
            len(changed),
            share,
            low,
            high,
            random_share,
            float(excess.mean()),
            min(excess_low, low - random_share),
            max(excess_high, high - random_share),
        )


@dataclass(frozen=True)
class LabelChange(ChangeShare):
    """In how many counterfactuals a label changes."""

    label: str
    mean_change: float  # with a rising score, in standard deviations of the training cases


def travel(direction: Direction, before: Codes, after: Codes) -> Floats:
    """How far cases ``[N, D]`` moved along a label's direction, in standard deviations of the training cases."""
    return (direction.distance(after) - direction.distance(before)) / direction.std


def has_changed(direction: Direction, before: Codes, after: Codes) -> NDArray[np.bool_]:
    """Whether the predicted class of cases ``[N, D]`` changes, or a number by at least a standard deviation."""
    if direction.kind == "continuous":
        return np.abs(travel(direction, before, after)) >= 1
    return (direction.predict(before) >= 0.5) != (direction.predict(after) >= 0.5)


def label_change(
    direction: Direction, codes: Codes, patients: Sequence[Any], *, towards: Floats, seed: int = 0
) -> LabelChange:
    """Count the cases in which a label changes, in the direction in which it mostly follows the score.

    ``codes`` ``[N, 2 + R, D]`` are each case, its counterfactual, and random changes of the same length; ``towards``
    ``[N]`` is 1 for a rising score, -1 for a falling one.
    """
    before, after, num_random = codes[:, 0], codes[:, 1], codes.shape[1] - 2
    moved = travel(direction, before, after) * towards
    common = np.sign(moved.mean()) or 1.0
    changed = (has_changed(direction, before, after) & (moved * common > 0)).astype(np.float64)
    start, end = np.repeat(before, num_random, axis=0), codes[:, 2:].reshape(-1, codes.shape[-1])
    is_common = travel(direction, start, end) * np.repeat(towards, num_random) * common > 0
    by_chance = (has_changed(direction, start, end) & is_common).reshape(-1, num_random).mean(axis=1)
    share = ChangeShare.of(changed, by_chance, patients, seed)
    return LabelChange(**asdict(share), label=direction.target, mean_change=float(moved.mean()))
