"""Reconstructions in ``evaluate``, case by case under every condition: from both codes, and from z_sem alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from monai_diffae.apps.evaluation.measured_rows import MeasuredRows
from monai_diffae.apps.evaluation.quality_tables import Row
from monai_diffae.apps.session import ReadCases, Session
from monai_diffae.bundle.loading import inferer_settings
from monai_diffae.data.cases import Case
from monai_diffae.diffusion.settings import DecoderName
from monai_diffae.inferers import DiffusionAutoencoderInferer, Reconstructor, encode_exactly
from monai_diffae.metrics import ImageQuality, noise_statistics

FAST = "fast decoder"
"""What the tables name in place of a solver."""
RECONSTRUCTION, Z_SEM_ONLY = "reconstruction", "z_sem_only"
_X_T_STATISTICS = ("std", "neighbor_correlation")


@dataclass(frozen=True)
class Condition:
    """How images are inverted and decoded in one line of a table."""

    inferer: DiffusionAutoencoderInferer
    solver: str  # the solver's name, or `fast decoder`
    steps: int  # network evaluations for decoding

    def evaluations(self, draws: int) -> int:
        """Network evaluations for the reconstructions of one image: from both codes, and from z_sem with each draw."""
        return self.inferer.invert_steps + self.steps * (1 + draws)


def conditions_of(
    inferer: DiffusionAutoencoderInferer,
    solvers: Sequence[str],
    steps: Sequence[int],
    decoders: Sequence[DecoderName] = (),
) -> list[Condition]:
    """Every solver with every number of steps, for the exact decoder; and the fast decoder as it is."""
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


@dataclass(frozen=True)
class Reconstructions:
    """Measures how well a bundle reconstructs its cases.

    An inversion is not refined beyond its number of steps, so that a line of a table says what these steps give.
    """

    name: str
    session: Session
    read: ReadCases
    quality: ImageQuality
    draws: int
    seed: int

    def evaluations(self, conditions: Sequence[Condition]) -> int:
        """Network evaluations of single images that the conditions need."""
        return len(self.read.cases) * sum(condition.evaluations(self.draws) for condition in conditions)

    def rows(self, conditions: Sequence[Condition], measured: MeasuredRows) -> Iterator[Row]:
        """One row per case, table and condition."""
        batch_size = self.session.run.batch_size
        for condition in conditions:
            for start in range(0, len(self.read.cases), batch_size):
                cases = self.read.cases[start : start + batch_size]
                make = partial(self._batch, condition, start)
                evaluations = len(cases) * condition.evaluations(self.draws)
                yield from measured.shared_rows(self._made_from(condition, cases), make, evaluations)

    def _made_from(self, condition: Condition, cases: Sequence[Case]) -> dict[str, object]:
        return {
            **self.session.made_from(cases, decodes=False), **inferer_settings(condition.inferer),
            "draws": self.draws, "seed": self.seed, "lpips": self.quality.has_lpips, "name": self.name,
        }  # fmt: skip

    @torch.no_grad()
    def _batch(self, condition: Condition, start: int) -> list[Row]:
        trained = self.session.trained
        cases = self.read.cases[start : start + self.session.run.batch_size]
        images, encoder_images = (stack.to(trained.device) for stack in self.read.batch(start, start + len(cases)))
        z_sem = encode_exactly(encoder_images, trained.network, trained.inferer)
        columns = {
            RECONSTRUCTION: self._with_both_codes(condition, images, z_sem),
            Z_SEM_ONLY: self._with_z_sem_alone(condition, images, z_sem, [case.id for case in cases]),
        }
        return [
            {
                "table": table, "bundle": self.name, "solver": condition.solver, "steps": condition.steps,
                "id": case.id, **{metric: float(column[i]) for metric, column in values.items()},
            }
            for table, values in columns.items()
            for i, case in enumerate(cases)
        ]  # fmt: skip

    def _with_both_codes(self, condition: Condition, images: Tensor, z_sem: Tensor) -> dict[str, Tensor]:
        reconstructor = Reconstructor(condition.inferer, "x_T", max_evaluations=0)
        decoded, x_T = reconstructor.decode(images, self.session.trained.network, z_sem)
        statistics = noise_statistics(x_T)
        noise = {f"x_T_{name}": statistics[name] for name in _X_T_STATISTICS}
        return {**self.quality(images, decoded), **noise}

    def _with_z_sem_alone(
        self, condition: Condition, images: Tensor, z_sem: Tensor, ids: Sequence[str]
    ) -> dict[str, Tensor]:
        """The mean of each metric over the draws, and how much the draws differ."""
        reconstructor = Reconstructor(condition.inferer, "z_sem", self.seed, self.draws)
        draws = reconstructor.decode_draws(z_sem, self.session.trained.network, reconstructor.noise(images, ids))
        measured = [self.quality(images, draw) for draw in draws.unbind(dim=1)]
        means = {metric: torch.stack([each[metric] for each in measured]).mean(dim=0) for metric in measured[0]}
        return {**means, **(self.quality.diversity(draws) if self.draws > 1 else {})}
