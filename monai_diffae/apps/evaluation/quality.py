"""What ``evaluate`` measures of one bundle: reconstructions of held-out cases, their z_sem, and synthetic images."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import EmbeddingCollapseMetric
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae import latents, metrics
from monai_diffae.apps.evaluation.quality_tables import MeasuredRows, Row, summary_row
from monai_diffae.apps.session import ReadCases, Session
from monai_diffae.bundle import TrainedLatent
from monai_diffae.bundle.loading import inferer_settings
from monai_diffae.data.cases import label_names
from monai_diffae.data.samples import FACTORS
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.diffusion.settings import DecoderName
from monai_diffae.errors import ConfigError, OmittableError
from monai_diffae.inferers import DiffusionAutoencoderInferer, Reconstructor, encode_exactly
from monai_diffae.latents.probing.scores import Floats, bootstrapped, bootstrapped_mean, interval
from monai_diffae.latents.targets import read_target
from monai_diffae.pictures import draw_cells

logger = logging.getLogger(__name__)

# A function from images (B, C, *S) and their range to features (B, F)
FeatureNetwork = Callable[[Tensor, tuple[float, float]], Tensor]

_FACTORS = [factor.name for factor in FACTORS]
_IN_PICTURE = 8


def condition_of(inferer: DiffusionAutoencoderInferer) -> dict[str, Any]:
    """What a line of a table says of decoding: the solver, or `fast decoder`, and the network evaluations."""
    solver = "fast decoder" if inferer.settings.decoder == "fast" else str(inferer_settings(inferer)["solver"])
    return {"solver": solver, "steps": inferer.decoding_evaluations}


def conditions_of(
    inferer: DiffusionAutoencoderInferer, solvers: Sequence[str], steps: Sequence[int], decoders: Sequence[DecoderName]
) -> list[DiffusionAutoencoderInferer]:
    """Every solver with every number of steps, for the exact decoder; and the fast decoder as it is."""
    conditions: dict[tuple[Any, ...], DiffusionAutoencoderInferer] = {}
    for decoder in decoders or [inferer.settings.decoder]:
        variants = [inferer.replace(decoder=decoder)]
        if decoder != "fast":
            variants = [variants[0].replace(solver=solver) for solver in solvers] or variants
            variants = [each.replace(steps=number, invert_steps=None) for each in variants for number in steps]
        for variant in variants:
            conditions.setdefault(tuple(condition_of(variant).values()), variant)
    return list(conditions.values())


@dataclass(frozen=True, eq=False)
class EncodedCases:
    """Cases that were read, with their z_sem (N, D)."""

    read: ReadCases
    z: NDArray[np.float32]

    @property
    def patients(self) -> list[str]:
        """The patient of each case."""
        return [case.patient for case in self.read.cases]

    @property
    def has_one_z_sem(self) -> bool:
        """Whether all cases have the same z_sem: a diffusion model without an encoder (``unconditional.json``)."""
        return len(self.z) > 1 and bool((self.z == self.z[0]).all())


@dataclass(frozen=True, eq=False)
class BundleCases:
    """A bundle, with the cases and conditions that are measured."""

    name: str
    session: Session
    read: ReadCases  # held-out cases, which are reconstructed
    held_out: EncodedCases | None  # that are encoded; None if neither z_sem nor synthetic images are measured
    train: EncodedCases | None  # if there are any
    conditions: Sequence[DiffusionAutoencoderInferer]
    seed: int
    omit: Callable[[str, str], None]  # is called with a metric and the reason why it cannot be measured

    @property
    def batch_size(self) -> int:
        """Images that are decoded at once."""
        return self.session.run.batch_size

    def measured(self, metric: str, measure: Callable[[], Iterator[Row]]) -> list[Row]:
        """The rows; those before a metric that cannot be measured."""
        rows: list[Row] = []
        try:
            rows.extend(measure())
        except OmittableError as error:
            self.omit(metric, str(error))
        return rows


@dataclass(frozen=True)
class Reconstructions:
    """Measures how well a bundle reconstructs its cases; an inversion is not refined beyond its steps."""

    bundle: BundleCases
    quality: metrics.ImageQuality
    draws: int

    @property
    def num_evaluations(self) -> int:
        """Network evaluations of single images, from both codes and from z_sem with each draw, of all conditions."""
        return len(self.bundle.read.cases) * sum(map(self._evaluations, self.bundle.conditions))

    def _evaluations(self, condition: DiffusionAutoencoderInferer) -> int:
        return condition.invert_steps + condition.decoding_evaluations * (1 + self.draws)

    def rows(self, measured: MeasuredRows) -> Iterator[Row]:
        """One row per case, table and condition."""
        bundle = self.bundle
        for condition in bundle.conditions:
            for start in range(0, len(bundle.read.cases), bundle.batch_size):
                cases = bundle.read.cases[start : start + bundle.batch_size]
                made_from = {
                    **bundle.session.made_from(cases, decodes=False),
                    **inferer_settings(condition),
                    "draws": self.draws,
                    "seed": bundle.seed,
                    "lpips": self.quality.has_lpips,
                    "name": bundle.name,
                }
                make = partial(self._batch, condition, start)
                yield from measured.rows(made_from, make, len(cases) * self._evaluations(condition), shared=True)

    @torch.no_grad()
    def _batch(self, condition: DiffusionAutoencoderInferer, start: int) -> list[Row]:
        bundle, trained = self.bundle, self.bundle.session.trained
        cases = bundle.read.cases[start : start + bundle.batch_size]
        images, encoder_images = (stack.to(trained.device) for stack in bundle.read.batch(start, start + len(cases)))
        z_sem = encode_exactly(encoder_images, trained.network, trained.inferer)
        decoded, x_T = Reconstructor(condition, "x_T", max_evaluations=0).decode(images, trained.network, z_sem)
        statistics = metrics.noise_statistics(x_T)
        noise = {f"x_T_{name}": statistics[name] for name in ("std", "neighbor_correlation")}
        alone = Reconstructor(condition, "z_sem", bundle.seed, self.draws)
        draws = alone.decode_draws(z_sem, trained.network, alone.noise(images, [case.id for case in cases]))
        measured = [self.quality(images, draw) for draw in draws.unbind(dim=1)]
        means = {metric: torch.stack([each[metric] for each in measured]).mean(dim=0) for metric in measured[0]}
        columns = {
            "reconstruction": {**self.quality(images, decoded), **noise},
            "z_sem_only": {**means, **(self.quality.diversity(draws) if self.draws > 1 else {})},
        }
        return [
            {
                "table": table,
                "bundle": bundle.name,
                **condition_of(condition),
                "id": case.id,
                **{metric: float(column[i]) for metric, column in values.items()},
            }
            for table, values in columns.items()
            for i, case in enumerate(cases)
        ]


@dataclass(frozen=True, eq=False)
class CodeFigures:
    """Measures z_sem: its dimensions, collapse and disentanglement."""

    bundle: BundleCases
    held_out: EncodedCases

    def rows(self) -> Iterator[Row]:
        """One row per figure; none of them needs the decoder."""
        measures: dict[str, Callable[[], Iterator[Row]]] = {
            "participation_ratio": self._dimensions,
            "collapse_effective_rank": self._collapse,
            "disentanglement": self._disentanglement,
        }
        for metric, measure in measures.items():
            yield from self.bundle.measured(metric, measure)

    def _row(self, metric: str, value: float, num: int, **condition: object) -> Row:
        return summary_row({"table": "z_sem", "bundle": self.bundle.name, **condition}, metric, value, None, num)

    def _dimensions(self) -> Iterator[Row]:
        for metric, value in asdict(latents.active_dimensions(self.held_out.z)).items():
            yield self._row(metric, value, len(self.held_out.z))

    def _collapse(self) -> Iterator[Row]:
        """MONAI's indicators, 0 good and 1 collapsed, of normalised z_sem; with labels that have classes, theirs."""
        z = torch.from_numpy(latents.LatentStatistics.of(self.held_out.z).normalise(self.held_out.z))
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
        for label in label_names(self.held_out.read.cases):
            try:
                target = read_target([case.labels.get(label) for case in self.held_out.read.cases], label)
            except ConfigError:  # it is the same for all, or text such as a comment
                continue
            if target.classes is not None and len(target.rows) > len(target.classes):
                yield label, target.rows.tolist(), target.values

    def _disentanglement(self) -> Iterator[Row]:
        """DCI, if the cohort has the factors of the virtual cohort."""
        if not all(name in self.held_out.read.cases[0].labels for name in _FACTORS):
            return
        if self.bundle.train is None:
            self.bundle.omit("disentanglement", "the factors are learnt from training cases, and the cohort has none")
            return
        factors = [
            np.array([[case.labels[name] for name in _FACTORS] for case in encoded.read.cases], np.float64)
            for encoded in (self.bundle.train, self.held_out)
        ]
        scores = latents.dci(self.bundle.train.z, factors[0], self.held_out.z, factors[1])
        for metric, value in asdict(scores).items():
            yield self._row(metric, value, len(self.held_out.z))


@dataclass(frozen=True, eq=False)
class GeneratedImages:
    """Images that a bundle generates; with a latent DDIM, those of the command ``generate`` with the same seed."""

    bundle: BundleCases
    held_out: EncodedCases
    latent: TrainedLatent | None  # None: all cases have the same z_sem
    networks: Mapping[str, FeatureNetwork]
    made_from: Mapping[str, Any]
    num_images: int

    @property
    def num_evaluations(self) -> int:
        """Network evaluations of single images that the conditions need."""
        return self.num_images * sum(condition.decoding_evaluations for condition in self.bundle.conditions)

    def rows(self, measured: MeasuredRows) -> Iterator[Row]:
        """One row per condition, features and metric."""
        if self.bundle.train is None:
            self.bundle.omit("copying_ratio", "the cohort has no training cases")
        yield from self.bundle.measured("mmd", self._z_sem_rows)
        yield from self.bundle.measured("fid", self._training_rows)
        for condition in self.bundle.conditions:
            settings = {**self.made_from, **inferer_settings(condition), "generated": self.num_images}
            make = partial(self.bundle.measured, "fid", partial(self._condition_rows, condition))
            yield from measured.rows(settings, make, self.num_images * condition.decoding_evaluations)

    @cached_property
    def z_sem(self) -> Tensor:
        """The sampled z_sem (N, D)."""
        if self.latent is None:
            return torch.from_numpy(self.held_out.z[:1]).repeat(self.num_images, 1)
        return self.latent.inferer.sample(self.latent.network, self.num_images, seed=self.bundle.seed).cpu()

    def decode(self, condition: DiffusionAutoencoderInferer, limit: int | None = None) -> Tensor:
        """The images (N, C, *S), or the first of them."""
        trained, images = self.bundle.session.trained, []
        for part in torch.arange(self.num_images)[:limit].split(self.bundle.batch_size):
            x_T = image_noise(trained.x_T_shape, self.bundle.seed, part.tolist()).to(trained.device)
            images.append(condition.decode(self.z_sem[part].to(trained.device), trained.network, x_T).cpu())
        return torch.cat(images)

    def _z_sem_rows(self) -> Iterator[Row]:
        held_out, train, condition = self.held_out, self.bundle.train, {"features": "z_sem"}
        statistics = latents.LatentStatistics.of(held_out.z if train is None else train.z)
        samples, real = statistics.normalise(self.z_sem.numpy()), statistics.normalise(held_out.z)
        yield self._row(condition, "mmd", latents.mmd(samples, real))
        yield from self._precision_and_recall(condition, real, samples, held_out.patients)
        if train is not None:
            known, rows = statistics.normalise(train.z), self._evenly_spaced(train)
            patients = [train.patients[i] for i in rows]
            yield from self._precision_and_recall(condition, real, known[rows], held_out.patients, patients)
            distances = latents.nearest_distances(samples, known), latents.nearest_distances(real, known)
            yield self._copying(condition, *distances, held_out.patients)

    def _training_rows(self) -> Iterator[Row]:
        """The figures of training images in place of generated ones: what a perfect model would reach."""
        if (train := self.bundle.train) is None:
            return
        positions = self._evenly_spaced(train)
        num, patients = len(positions), [train.patients[i] for i in positions]
        if num < self.num_images and self.networks:
            logger.warning(
                "fid_training uses all %d training images, but fid %d generated ones; FID is higher for fewer images, "
                "so compare them with num_images=%d",
                num,
                self.num_images,
                num,
            )
        images, _ = train.read.stacked(positions)
        for name in self.networks:
            features, real = self._features(name, images), self._real_features[name]
            condition = {"features": name}
            yield self._row(condition, "fid_training", metrics.frechet_distance(features, real), num=num)
            yield self._row(condition, "kid_training", metrics.kernel_distance(features, real), num=num)
            yield from self._precision_and_recall(condition, real, features, self.held_out.patients, patients)

    def _evenly_spaced(self, train: EncodedCases) -> list[int]:
        """The positions of as many training cases as there are generated images, or of all."""
        num = min(self.num_images, len(train.z))
        return [i * len(train.z) // num for i in range(num)]

    def _condition_rows(self, condition: DiffusionAutoencoderInferer) -> Iterator[Row]:
        images, fields = self.decode(condition), condition_of(condition)
        for name in self.networks:
            real, made = self._real_features[name], self._features(name, images)
            of_network = {**fields, "features": name}
            yield self._row(of_network, "fid", metrics.frechet_distance(made, real))
            yield self._row(of_network, "kid", metrics.kernel_distance(made, real))
            yield from self._precision_and_recall(of_network, real, made, self.held_out.patients)
        if self.bundle.train is not None and self._real_distances is not None:
            distances, _ = nearest_images(images, self.bundle.train.read, self.bundle.batch_size)
            patients = [case.patient for case in self.bundle.read.cases]
            yield self._copying({**fields, "features": "pixels"}, distances, self._real_distances, patients)

    @cached_property
    def _real_distances(self) -> Floats | None:
        """The pixel distance of each held-out image to its nearest training image, if there is one."""
        images, _ = self.bundle.read.batch(0, len(self.bundle.read.cases))
        train = self.bundle.train
        return None if train is None else nearest_images(images, train.read, self.bundle.batch_size)[0]

    @cached_property
    def _real_features(self) -> dict[str, Floats]:
        """The features of the held-out images, by network."""
        size, read = self.bundle.batch_size, self.held_out.read
        batches = [read.batch(i, i + size)[0] for i in range(0, len(read.cases), size)]
        return {name: np.concatenate([self._features(name, batch) for batch in batches]) for name in self.networks}

    def draw_nearest(self, path: Path) -> None:
        """Draw the first generated images beside their nearest training cases, in pixels and in z_sem."""
        if (train := self.bundle.train) is None or self.latent is None:
            return
        images = self.decode(max(self.bundle.conditions, key=lambda each: each.decoding_evaluations), _IN_PICTURE)
        distances, in_pixels = nearest_images(images, train.read, self.bundle.batch_size)
        statistics = latents.LatentStatistics.of(train.z)
        near = latents.nearest_neighbors(
            statistics.normalise(self.z_sem[: len(images)].numpy()), statistics.normalise(train.z), 1
        )
        shown = self.bundle.session.trained.shown
        rows = [zip(shown(images).split(1), [f"generated {i}" for i in range(len(images))], strict=True)] + [
            zip(
                shown(train.read.stacked(positions)[0]).split(1),
                [f"nearest in {name}\n{d:{digits}}" for d in far],
                strict=True,
            )
            for name, digits, positions, far in (
                ("pixels", ".3f", in_pixels, distances),
                ("z_sem", ".1f", near.indices[:, 0].tolist(), near.distances[:, 0]),
            )
        ]
        draw_cells(rows, path)

    def _features(self, name: str, images: Tensor) -> Floats:
        trained = self.bundle.session.trained
        parts = images.split(self.bundle.batch_size)
        features = [self.networks[name](part.to(trained.device), trained.model_range).cpu() for part in parts]
        return torch.cat(features).double().numpy()

    def _precision_and_recall(
        self,
        condition: Mapping[str, Any],
        real: Any,
        made: Any,
        patients: Sequence[str],
        of_training: Sequence[str] | None = None,
    ) -> Iterator[Row]:
        """Precision and recall, with ``real`` features of held-out patients; ``made`` may be of training patients."""
        suffix = "" if of_training is None else "_training"
        names, all_groups = ("precision", "recall"), (of_training or range(len(made)), patients)
        for metric, values, groups in zip(names, metrics.precision_and_recall(real, made), all_groups, strict=True):
            ends = interval(bootstrapped_mean(values, list(groups), self.bundle.seed))
            yield self._row(condition, metric + suffix, float(values.mean()), ends, len(made))

    def _copying(
        self, condition: Mapping[str, Any], of_samples: Floats, of_held_out: Floats, patients: Sequence[str]
    ) -> Row:
        """The copying ratio, with an interval over generated images and held-out patients."""
        distances = np.concatenate([of_samples, of_held_out])
        is_sample = np.arange(len(distances)) < len(of_samples)

        def ratio(weights: Floats) -> Floats:
            counts = weights.astype(int)
            if not (counts[is_sample].any() and counts[~is_sample].any()):  # a draw of few patients may have none
                return np.array([np.nan])
            made, real = (np.median(np.repeat(distances[own], counts[own])) for own in (is_sample, ~is_sample))
            return np.array([made / real if real > 0 else np.nan])

        groups = [*(f"generated {i}" for i in range(len(of_samples))), *patients]
        draws = bootstrapped(ratio, groups, self.bundle.seed)
        return self._row(condition, "copying_ratio", float(ratio(np.ones(len(distances)))[0]), interval(draws[:, 0]))

    def _row(
        self,
        condition: Mapping[str, Any],
        metric: str,
        value: float,
        ends: tuple[float, float] | None = None,
        num: int | None = None,
    ) -> Row:
        fields = {"table": "generation", "bundle": self.bundle.name, **condition}
        return summary_row(fields, metric, value, ends, self.num_images if num is None else num)


def nearest_images(images: Tensor, train: ReadCases, batch_size: int) -> tuple[Floats, list[int]]:
    """The most similar training image of each image (N, C, *S)."""
    flat = images.flatten(1).float()
    nearest, positions = torch.full((len(flat),), torch.inf), torch.zeros(len(flat), dtype=torch.long)
    for start in range(0, len(train.cases), batch_size):
        others = train.batch(start, start + batch_size)[0].flatten(1).float()
        distances = torch.cdist(flat, others, compute_mode="donot_use_mm_for_euclid_dist")
        values, indices = distances.min(dim=1)
        positions = torch.where(values < nearest, indices + start, positions)
        nearest = torch.minimum(nearest, values)
    return (nearest / flat.shape[1] ** 0.5).double().numpy(), positions.tolist()
