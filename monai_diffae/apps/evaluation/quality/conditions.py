"""The conditions of an evaluation: solvers and numbers of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monai_diffae.bundle.loading import inferer_settings
from monai_diffae.diffusion.settings import DecoderName
from monai_diffae.inferers import DiffusionAutoencoderInferer

FAST = "fast decoder"
"""What the tables name in place of a solver."""


@dataclass(frozen=True)
class Condition:
    """How images are inverted and decoded in one line of a table.

    Attributes:
        inferer: inverts and decodes; with the exact decoder, with as many evaluations for both.
        solver: the solver's name, or ``fast decoder``.
        steps: network evaluations for decoding.
    """

    inferer: DiffusionAutoencoderInferer
    solver: str
    steps: int

    def evaluations(self, draws: int) -> int:
        """Network evaluations for the reconstructions of one image: from both codes, and from z_sem with each draw."""
        return self.inferer.invert_steps + self.steps * (1 + draws)


def conditions_of(
    inferer: DiffusionAutoencoderInferer,
    solvers: Sequence[str],
    steps: Sequence[int],
    decoders: Sequence[DecoderName] = (),
) -> list[Condition]:
    """Every solver with every number of steps, for the exact decoder; and the fast decoder as it is.

    A solver that takes two evaluations per step may use one less than ``steps``; conditions that become equal are
    listed once.

    Args:
        inferer: the bundle's.
        solvers: names of solvers; none: the inferer's own.
        steps: numbers of network evaluations.
        decoders: which decoders; none: the inferer's own.

    Raises:
        ConfigError: the schedule has fewer levels than steps.
    """
    conditions: list[Condition] = []
    for decoder in dict.fromkeys(decoders or [inferer.decoder]):
        variant = inferer.replace(decoder=decoder)
        if decoder == "fast":
            conditions.append(Condition(variant, FAST, variant.decoding_evaluations))
        else:
            conditions += _exact_conditions(variant, solvers, steps)
    return conditions


def _exact_conditions(
    inferer: DiffusionAutoencoderInferer, solvers: Sequence[str], steps: Sequence[int]
) -> list[Condition]:
    variants = [inferer.replace(solver=solver) for solver in solvers] or [inferer]
    conditions: dict[tuple[str, int], Condition] = {}
    for variant in variants:
        for number in steps:
            changed = variant.replace(steps=number, invert_steps=None)
            name = str(inferer_settings(changed)["solver"])
            conditions.setdefault((name, changed.steps), Condition(changed, name, changed.steps))
    return list(conditions.values())
