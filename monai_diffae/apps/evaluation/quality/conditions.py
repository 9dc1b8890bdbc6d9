"""The conditions of an evaluation: solvers and numbers of steps."""

# tested in tests/apps/evaluation/test_evaluate.py

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monai_diffae.bundle.decoding import inferer_settings
from monai_diffae.inferers import DiffusionAutoencoderInferer


@dataclass(frozen=True)
class Condition:
    """How images are inverted and decoded in one line of a table.

    Attributes:
        inferer: inverts and decodes with this solver, and with as many evaluations for both.
        solver: the solver's name.
        steps: network evaluations for decoding, and as many for inversion.
    """

    inferer: DiffusionAutoencoderInferer
    solver: str
    steps: int


def conditions_of(
    inferer: DiffusionAutoencoderInferer, solvers: Sequence[str], steps: Sequence[int]
) -> list[Condition]:
    """Every solver with every number of steps; no solvers: the inferer's own.

    A solver that takes two evaluations per step may use one less than ``steps``; conditions that become equal are
    listed once.

    Raises:
        ConfigError: the schedule has fewer levels than steps.
    """
    variants = [inferer.replace(solver=solver) for solver in solvers] or [inferer]
    conditions: dict[tuple[str, int], Condition] = {}
    for variant in variants:
        for number in steps:
            changed = variant.replace(steps=number, invert_steps=None)
            name = str(inferer_settings(changed)["solver"])
            conditions.setdefault((name, changed.steps), Condition(changed, name, changed.steps))
    return list(conditions.values())
