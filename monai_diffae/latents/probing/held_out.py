"""Quick probes: how well z_sem predicts a label of held-out patients, in a fraction of a second.

They follow a training. For results to report, see :func:`~monai_diffae.latents.probing.evaluate_probes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import ConfigError
from monai_diffae.latents.neighbors import nearest_neighbors
from monai_diffae.latents.probing.nested import split_folds
from monai_diffae.latents.probing.probes import Floats, fit_probe
from monai_diffae.latents.probing.scores import ClassScores, NumberScores, bootstrapped
from monai_diffae.latents.probing.targets import ProbeTarget, read_probe_target

NUM_NEIGHBORS = 5
_FEWEST_PATIENTS = 10  # held-out patients with the label; fewer say nothing


@dataclass(frozen=True)
class QuickScores:
    """How well z_sem predicts a label of held-out patients.

    Attributes:
        score: AUROC of a linear probe for classes (0.5 is chance), R2 for numbers (0 is chance).
        low: lower end of its 95% interval, from a bootstrap over the held-out patients.
        high: upper end.
        neighbors: agreement of a held-out case with its 5 nearest training cases. For classes: how many of these have
            its class, as a mean over the classes (1 / number of classes is chance); for numbers: the correlation with
            their mean (0 is chance).
    """

    score: float
    low: float
    high: float
    neighbors: float


@dataclass(frozen=True, eq=False)
class QuickProbe:
    """A label, and the cases on which it is probed: a linear model learns from some and predicts the others.

    For classes it is a ridge regression of each class against the rest, which is much faster than a logistic one.

    Attributes:
        target: the label of K cases; its rows are those of the N cases.
        patients: ``[K]``, their patients.
        train: positions of the training cases among the K.
        test: positions of the held-out cases.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(200, 4))
        >>> probe = QuickProbe.choose(list(z[:, 0] > 0), "large", np.arange(200), np.arange(200) < 120)
        >>> scores = probe.scores(z)
        >>> scores.score > 0.95, scores.low <= scores.score <= scores.high, scores.neighbors > 0.7
        (True, True, True)
    """

    target: ProbeTarget
    patients: NDArray[Any]
    train: NDArray[np.intp]
    test: NDArray[np.intp]

    @classmethod
    def choose(
        cls, labels: Sequence[Any], name: str, patients: NDArray[Any], is_train: NDArray[np.bool_]
    ) -> QuickProbe:
        """Choose the cases of a label, without classes that are too small.

        Args:
            labels: ``[N]``.
            name: the label's name.
            patients: ``[N]``.
            is_train: ``[N]``, whether a case is a training case; the others are held out.

        Raises:
            ConfigError: the label cannot be probed: it is the same for all, text with too many values, or has too few
                patients.
        """
        every = read_probe_target(labels, name)
        sides = is_train[every.rows], ~is_train[every.rows]
        target, [(train, test)] = split_folds(every, patients[every.rows], *sides)
        kept = patients[target.rows]
        if (count := len(np.unique(kept[test]))) < _FEWEST_PATIENTS:
            raise ConfigError(
                f"target '{name}': {count} held-out patients are too few; at least {_FEWEST_PATIENTS} are needed"
            )
        return cls(target, kept, train, test)

    def scores(self, z: Floats, seed: int = 0) -> QuickScores:
        """Probe z_sem ``[N, D]`` of all N cases.

        Args:
            z: one row for each case.
            seed: random seed of the folds, which choose the regularisation, and of the bootstrap.
        """
        x = z[self.target.rows]
        predicted = self._predicted(x, seed)
        truth = self.target.values[self.test]
        is_number = self.target.classes is None
        judged = NumberScores(truth, predicted[:, 0]) if is_number else ClassScores(truth, predicted)
        patients = self.patients[self.test]
        ends = judged.intervals(bootstrapped(judged, patients, seed), patients)[0]
        return QuickScores(float(judged(np.ones(len(truth)))[0]), *ends, self._agreement(x))

    def _predicted(self, x: Floats, seed: int) -> Floats:
        """A column of predictions for each class, or one column of numbers, for the held-out cases."""
        values = self.target.values
        columns = [values] if self.target.classes is None else [values == k for k in range(len(self.target.classes))]
        if len(columns) == 2:
            columns = columns[1:]
        train, groups = self.train, self.patients[self.train]
        fitted = [fit_probe("linear", x[train], y[train].astype(np.float64), groups, None, seed) for y in columns]
        predicted = np.stack([probe.predict(x[self.test]) for probe in fitted], axis=1)
        is_binary = self.target.classes is not None and len(self.target.classes) == 2
        return np.concatenate([-predicted, predicted], axis=1) if is_binary else predicted

    def _agreement(self, x: Floats) -> float:
        std = x[self.train].std(axis=0)
        scaled = x / np.where(std > 0, std, 1)
        nearest = nearest_neighbors(scaled[self.test], scaled[self.train], min(NUM_NEIGHBORS, len(self.train)))
        theirs = self.target.values[self.train][nearest.indices]
        own = self.target.values[self.test]
        if self.target.classes is not None:
            share = (theirs == own[:, None]).mean(axis=1)
            return float(np.mean([share[own == k].mean() for k in np.unique(own)]))
        mean = theirs.mean(axis=1)
        return float(np.corrcoef(mean, own)[0, 1]) if np.ptp(mean) > 0 else 0.0
