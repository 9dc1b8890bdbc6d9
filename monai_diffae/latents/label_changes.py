"""Which labels change in counterfactuals, beyond what equally long random changes do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.latents.directions import Direction
from monai_diffae.latents.neighbors import numbered_groups
from monai_diffae.latents.probing.scores import bootstrapped, bounded_interval, difference_interval
from monai_diffae.latents.statistics import Codes, Floats


@dataclass(frozen=True)
class LabelChange:
    """How often a label changes in counterfactuals.

    Attributes:
        label: its name.
        num_changed: counterfactuals in which it changes.
        num_cases: all of them.
        share: ``num_changed / num_cases``, with its 95 % interval ``low`` to ``high`` over patients.
        random_share: the share of equally long random changes in which it changes.
        excess: ``share - random_share``, with its paired interval ``excess_low`` to ``excess_high``.
        mean_change: mean change towards the positive class or up, in standard deviations of the training cases, of
            counterfactuals with a rising score, and minus that of those with a falling one.
    """

    label: str
    num_changed: int
    num_cases: int
    share: float
    low: float
    high: float
    random_share: float
    excess: float
    excess_low: float
    excess_high: float
    mean_change: float


def travel(direction: Direction, before: Codes, after: Codes) -> Floats:
    """How far cases ``[N, D]`` moved along a label's direction, in standard deviations of the training cases."""
    return (direction.distance(after) - direction.distance(before)) / direction.std


def has_changed(direction: Direction, before: Codes, after: Codes) -> NDArray[np.bool_]:
    """Whether the predicted class of cases ``[N, D]`` changes, or a number by at least a standard deviation."""
    if direction.kind == "continuous":
        return np.abs(travel(direction, before, after)) >= 1
    return (direction.predict(before) >= 0.5) != (direction.predict(after) >= 0.5)


def label_change(
    direction: Direction,
    before: Codes,
    after: Codes,
    random: Codes,
    patients: Sequence[Any],
    *,
    towards: Floats,
    seed: int = 0,
) -> LabelChange:
    """Count the cases in which a label changes, in the direction in which it mostly follows the score.

    Args:
        direction: the label's direction, fitted to training cases.
        before: ``[N, D]``, z_sem of the scans, not normalised.
        after: ``[N, D]``, z_sem of their counterfactuals.
        random: ``[N, R, D]``, z_sem after R random changes of the same length.
        patients: ``[N]``.
        towards: ``[N]``, 1 for a rising score, -1 for a falling one.
        seed: random seed of the bootstrap over patients.

    Example:
        >>> from monai_diffae.latents import fit_direction
        >>> z = np.random.default_rng(0).normal(size=(200, 3))
        >>> sick = fit_direction(z, z[:, 0] > 0, target="sick", model="a" * 64)
        >>> few, towards = z[:20], -np.sign(z[:20, 0])
        >>> after = few + towards[:, None] * [4.0, 0, 0]
        >>> found = label_change(sick, few, after, few[:, None], range(20), towards=towards)
        >>> found.num_changed, found.random_share, found.low > 0.8, found.excess_low > 0.5
        (20, 0.0, True, True)
    """
    num_random = random.shape[1]
    moved = travel(direction, before, after) * towards
    common = np.sign(moved.mean()) or 1.0
    changed = (has_changed(direction, before, after) & (moved * common > 0)).astype(np.float64)
    start, end = np.repeat(before, num_random, axis=0), random.reshape(-1, random.shape[-1])
    is_common = travel(direction, start, end) * np.repeat(towards, num_random) * common > 0
    by_chance = (has_changed(direction, start, end) & is_common).reshape(-1, num_random).mean(axis=1)

    def shares(weights: Floats) -> Floats:
        values = np.array([changed, changed - by_chance])
        return values @ weights / weights.sum()

    draws, num_patients = bootstrapped(shares, patients, seed), int(numbered_groups(patients).max()) + 1
    share, excess = (float(value) for value in shares(np.ones(len(changed))))
    low, high = bounded_interval(share, draws[:, 0], num_patients)
    excess_low, excess_high = difference_interval(excess, draws[:, 1], num_patients)
    return LabelChange(
        direction.target, int(changed.sum()), len(changed), share, low, high, float(by_chance.mean()), excess,
        excess_low, excess_high, float(moved.mean()),
    )  # fmt: skip
