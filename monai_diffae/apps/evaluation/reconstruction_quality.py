"""Reconstructions in ``evaluate``, case by case under every condition: from both codes, and from z_sem alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from monai_diffae.apps.evaluation.measured_rows import MeasuredRows
from monai_diffae.apps.evaluation.quality_tables import Row
from monai_diffae.apps.session import ReadCases, Session
from monai_diffae.bundle.loading import inferer_settings
from monai_diffae.diffusion.settings import DecoderName
from monai_diffae.inferers import DiffusionAutoencoderInferer, Reconstructor, encode_exactly
from monai_diffae.metrics import ImageQuality, noise_statistics

_X_T_STATISTICS = ("std", "neighbor_correlation")


def condition_of(inferer: DiffusionAutoencoderInferer) -> dict[str, Any]:
    """What a line of a table says of decoding: the solver, or `fast decoder`, and the network evaluations."""
    solver = "fast decoder" if inferer.decoder == "fast" else str(inferer_settings(inferer)["solver"])
    return {"solver": solver, "steps": inferer.decoding_evaluations}


def conditions_of(
    inferer: DiffusionAutoencoderInferer, solvers: Sequence[str], steps: Sequence[int], decoders: Sequence[DecoderName]
) -> list[DiffusionAutoencoderInferer]:
    """Every solver with every number of steps, for the exact decoder; and the fast decoder as it is."""
    conditions: dict[tuple[Any, ...], DiffusionAutoencoderInferer] = {}
    for decoder in decoders or [inferer.decoder]:
        variants = [inferer.replace(decoder=decoder)]
        if decoder != "fast":
            variants = [variants[0].replace(solver=solver) for solver in solvers] or variants
            variants = [each.replace(steps=number, invert_steps=None) for each in variants for number in steps]
        for variant in variants:
            conditions.setdefault(tuple(condition_of(variant).values()), variant)
    return list(conditions.values())


@dataclass(frozen=True)
class Reconstructions:
    """Measures how well a bundle reconstructs its cases; an inversion is not refined beyond its steps."""

    name: str
    session: Session
    read: ReadCases
    quality: ImageQuality
    conditions: Sequence[DiffusionAutoencoderInferer]
    draws: int
    seed: int

    @property
    def num_evaluations(self) -> int:
        """Network evaluations of single images, from both codes and from z_sem with each draw, of all conditions."""
        return len(self.read.cases) * sum(map(self._evaluations, self.conditions))

    def _evaluations(self, condition: DiffusionAutoencoderInferer) -> int:
        return condition.invert_steps + condition.decoding_evaluations * (1 + self.draws)

    def rows(self, measured: MeasuredRows) -> Iterator[Row]:
        """One row per case, table and condition."""
        batch_size = self.session.run.batch_size
        for condition in self.conditions:
            for start in range(0, len(self.read.cases), batch_size):
                cases = self.read.cases[start : start + batch_size]
                made_from = {
                    **self.session.made_from(cases, decodes=False), **inferer_settings(condition),
                    "draws": self.draws, "seed": self.seed, "lpips": self.quality.has_lpips, "name": self.name,
                }  # fmt: skip
                make = partial(self._batch, condition, start)
                yield from measured.rows(made_from, make, len(cases) * self._evaluations(condition), shared=True)

    @torch.no_grad()
    def _batch(self, condition: DiffusionAutoencoderInferer, start: int) -> list[Row]:
        trained = self.session.trained
        cases = self.read.cases[start : start + self.session.run.batch_size]
        images, encoder_images = (stack.to(trained.device) for stack in self.read.batch(start, start + len(cases)))
        z_sem = encode_exactly(encoder_images, trained.network, trained.inferer)
        decoded, x_T = Reconstructor(condition, "x_T", max_evaluations=0).decode(images, trained.network, z_sem)
        statistics = noise_statistics(x_T)
        noise = {f"x_T_{name}": statistics[name] for name in _X_T_STATISTICS}
        alone = Reconstructor(condition, "z_sem", self.seed, self.draws)
        draws = alone.decode_draws(z_sem, trained.network, alone.noise(images, [case.id for case in cases]))
        measured = [self.quality(images, draw) for draw in draws.unbind(dim=1)]
        means = {metric: torch.stack([each[metric] for each in measured]).mean(dim=0) for metric in measured[0]}
        columns = {
            "reconstruction": {**self.quality(images, decoded), **noise},
            "z_sem_only": {**means, **(self.quality.diversity(draws) if self.draws > 1 else {})},
        }
        return [
            {
                "table": table, "bundle": self.name, **condition_of(condition), "id": case.id,
                **{metric: float(column[i]) for metric, column in values.items()},
            }
            for table, values in columns.items()
            for i, case in enumerate(cases)
        ]  # fmt: skip
