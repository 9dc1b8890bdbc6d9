"""Which labels change in counterfactuals, beyond what equally long random changes do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.latents.directions import Direction
from monai_diffae.latents.probing.scores import bootstrapped, difference_interval
from monai_diffae.latents.statistics import Codes, Floats


@dataclass(frozen=True)
class LabelChange:
    """How often a label changes in counterfactuals; intervals are of 95 %, over patients."""

    label: str
    num_changed: int
    num_cases: int
    share: float
    low: float
    high: float
    random_share: float  # of equally long random changes
    excess: float  # share - random_share, paired
    excess_low: float
    excess_high: float
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
    from scipy import stats

    before, after, num_random = codes[:, 0], codes[:, 1], codes.shape[1] - 2
    moved = travel(direction, before, after) * towards
    common = np.sign(moved.mean()) or 1.0
    changed = (has_changed(direction, before, after) & (moved * common > 0)).astype(np.float64)
    start, end = np.repeat(before, num_random, axis=0), codes[:, 2:].reshape(-1, codes.shape[-1])
    is_common = travel(direction, start, end) * np.repeat(towards, num_random) * common > 0
    by_chance = (has_changed(direction, start, end) & is_common).reshape(-1, num_random).mean(axis=1)

    excess = changed - by_chance
    draws = bootstrapped(lambda weights: np.array([excess @ weights / weights.sum()]), patients, seed)
    num_patients, share = len(set(patients)), float(changed.mean())
    # Clopper and Pearson 1934, as if the cases of a patient were one: a bootstrap of 0 of 20 would have no width
    low = stats.beta.ppf(0.025, share * num_patients, (1 - share) * num_patients + 1) if share > 0 else 0.0
    high = stats.beta.ppf(0.975, share * num_patients + 1, (1 - share) * num_patients) if share < 1 else 1.0
    excess_low, excess_high = difference_interval(float(excess.mean()), draws[:, 0], num_patients)
    by_chance_share = float(by_chance.mean())
    return LabelChange(
        direction.target, int(changed.sum()), len(changed), share, float(low), float(high), by_chance_share,
        float(excess.mean()), min(excess_low, float(low) - by_chance_share),
        max(excess_high, float(high) - by_chance_share), float(moved.mean()),
    )  # fmt: skip
