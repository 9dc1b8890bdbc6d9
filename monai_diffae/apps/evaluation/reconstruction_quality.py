"""What ``evaluate`` measures of held-out cases: their reconstructions under every condition, and their z_sem."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.metrics import EmbeddingCollapseMetric
from numpy.typing import NDArray

from monai_diffae.apps.evaluation.diagnose import Diagnosis
from monai_diffae.apps.evaluation.quality_tables import MeasuredRows, Row, mean_interval, summary_row
from monai_diffae.apps.session import ReadCases, Session
from monai_diffae.bundle.loading import inferer_settings
from monai_diffae.data.cases import Case, label_names
from monai_diffae.data.samples import FACTORS
from monai_diffae.diffusion.settings import DecoderName
from monai_diffae.errors import ConfigError, OmittableError
from monai_diffae.inferers import DiffusionAutoencoderInferer, Reconstructor, encode_exactly
from monai_diffae.latents import LatentStatistics, active_dimensions, dci
from monai_diffae.latents.targets import read_target
from monai_diffae.metrics import ImageQuality, noise_statistics

_X_T_STATISTICS = ("std", "neighbor_correlation")
Z_SEM = "z_sem"
NUM_LEVELS = 10  # noise levels at which the use of z_sem is measured
_FACTORS = [factor.name for factor in FACTORS]


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


# -- z_sem: its use by the decoder, its dimensions, collapse and disentanglement ---------------------------------------


@dataclass(frozen=True, eq=False)
class EncodedCases:
    """Cases with their z_sem (N, D)."""

    cases: Sequence[Case]
    z: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CodeFigures:
    """Measures z_sem of one bundle; ``omit`` is called with a metric and the reason why it cannot be measured."""

    name: str
    held_out: EncodedCases
    train: EncodedCases | None
    seed: int
    omit: Callable[[str, str], None]

    def rows(self, session: Session, read: ReadCases) -> Iterator[Row]:
        """The use of z_sem by the decoder in some cases, and the figures that need no decoder, one row each."""
        measures: dict[str, Callable[[], Iterator[Row]]] = {
            "z_sem_usage": partial(self._usage, session, read), "participation_ratio": self._dimensions,
            "collapse_effective_rank": self._collapse, "disentanglement": self._disentanglement,
        }  # fmt: skip
        for metric, measure in measures.items():
            try:
                yield from measure()
            except OmittableError as error:
                self.omit(metric, str(error))

    def _usage(self, session: Session, read: ReadCases) -> Iterator[Row]:
        """The loss with another patient's z_sem divided by the loss with the own, by noise level and over all."""
        diagnosis = Diagnosis(session, read, NUM_LEVELS, self.seed)
        patients = diagnosis.patients
        losses = diagnosis.losses(diagnosis.codes_to_compare(session.encode(read)))
        own, other = (
            np.stack([np.asarray(by_name[name]) for by_name in losses.values()], axis=1) for name in ("own", "other")
        )
        own, other = (np.column_stack([each, each.sum(axis=1)]) for each in (own, other))
        values = other.sum(axis=0) / own.sum(axis=0)
        linear = values + (other - values * own) / own.mean(axis=0)  # delta method: their mean is the ratio
        for i, timestep in enumerate([*losses, None]):
            ends = mean_interval(linear[:, i], patients)
            yield self._row("z_sem_usage", values[i], len(own), ends, timestep=timestep)

    def _row(
        self, metric: str, value: float, num: int, ends: tuple[float, float] | None = None, **condition: object
    ) -> Row:
        return summary_row({"table": Z_SEM, "bundle": self.name, **condition}, metric, value, ends, num)

    def _dimensions(self) -> Iterator[Row]:
        for metric, value in asdict(active_dimensions(self.held_out.z)).items():
            yield self._row(metric, value, len(self.held_out.z))

    def _collapse(self) -> Iterator[Row]:
        """MONAI's indicators, 0 good and 1 collapsed, of normalised z_sem; with labels that have classes, theirs."""
        z = torch.from_numpy(LatentStatistics.of(self.held_out.z).normalise(self.held_out.z))
        rank = EmbeddingCollapseMetric(include_indicators=["effective_rank"])(z)["effective_rank_score"]
        yield self._row("collapse_effective_rank", float(rank), len(z))  # type: ignore[arg-type]
        indicators = ["centroid_similarity", "separation"]
        metric = EmbeddingCollapseMetric(include_indicators=indicators, reduction="none")
        for label, rows, classes in self._classes():
            for name, score in metric(z[rows], torch.from_numpy(classes)).items():
                if score is not None:
                    yield self._row(f"collapse_{name}", float(score), len(rows), features=label)

    def _classes(self) -> Iterator[tuple[str, Sequence[int], np.ndarray]]:
        """Each label with classes: its name, the rows that have it and their classes."""
        for label in label_names(self.held_out.cases):
            try:
                target = read_target([case.labels.get(label) for case in self.held_out.cases], label)
            except ConfigError:  # it is the same for all, or text such as a comment
                continue
            if target.classes is not None and len(target.rows) > len(target.classes):
                yield label, target.rows.tolist(), target.values

    def _disentanglement(self) -> Iterator[Row]:
        """DCI, if the cohort has the factors of the virtual cohort."""
        if not all(name in self.held_out.cases[0].labels for name in _FACTORS):
            return
        if self.train is None:
            self.omit("disentanglement", "the factors are learnt from training cases, and the cohort has none")
            return
        factors = [
            np.array([[case.labels[name] for name in _FACTORS] for case in encoded.cases], np.float64)
            for encoded in (self.train, self.held_out)
        ]
        scores = dci(self.train.z, factors[0], self.held_out.z, factors[1])
        for metric, value in asdict(scores).items():
            yield self._row(metric, value, len(self.held_out.z))
