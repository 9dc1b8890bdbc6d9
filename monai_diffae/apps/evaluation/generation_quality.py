"""Synthetic images in ``evaluate``, compared with held-out cases and with the training set."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diffae.apps.evaluation.quality_tables import MeasuredRows, Row, summary_row
from monai_diffae.apps.evaluation.reconstruction_quality import EncodedCases, condition_of
from monai_diffae.apps.session import ReadCases, Session
from monai_diffae.bundle import TrainedLatent
from monai_diffae.bundle.loading import inferer_settings
from monai_diffae.data.cases import Case
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import OmittableError
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.latents import LatentStatistics, mmd, nearest_distances, nearest_neighbors
from monai_diffae.latents.probing.scores import Floats, bootstrapped, interval
from monai_diffae.metrics import frechet_distance, kernel_distance, precision_and_recall
from monai_diffae.pictures import draw_cells

GENERATION = "generation"
# A function from images (B, C, *S) and their range to features (B, F)
FeatureNetwork = Callable[[Tensor, tuple[float, float]], Tensor]
_IN_PICTURE = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GeneratedImages:
    """Images that a bundle generates, exactly those of the command ``generate`` with the same seed."""

    name: str
    session: Session
    latent: TrainedLatent
    held_out: ReadCases
    train: ReadCases | None
    encoded: tuple[EncodedCases, EncodedCases | None]
    networks: Mapping[str, FeatureNetwork]
    conditions: Sequence[DiffusionAutoencoderInferer]
    made_from: Mapping[str, Any]
    num_images: int
    seed: int
    omit: Callable[[str, str], None]

    @property
    def num_evaluations(self) -> int:
        """Network evaluations of single images that the conditions need."""
        return self.num_images * sum(condition.decoding_evaluations for condition in self.conditions)

    def rows(self, measured: MeasuredRows) -> Iterator[Row]:
        """One row per condition, features and metric."""
        if self.train is None:
            self.omit("copying_ratio", "the cohort has no training cases")
        yield from self._measured("mmd", self._z_sem_rows)
        yield from self._measured("fid", self._training_rows)
        for condition in self.conditions:
            settings = {**self.made_from, **inferer_settings(condition), "generated": self.num_images}
            make = partial(self._measured, "fid", partial(self._condition_rows, condition))
            yield from measured.rows(settings, make, self.num_images * condition.decoding_evaluations)

    @cached_property
    def z_sem(self) -> Tensor:
        """The sampled z_sem (N, D)."""
        return self.latent.inferer.sample(self.latent.network, self.num_images, seed=self.seed).cpu()

    def decode(self, condition: DiffusionAutoencoderInferer, limit: int | None = None) -> Tensor:
        """The images (N, C, *S), or the first of them."""
        trained, images = self.session.trained, []
        for part in torch.arange(self.num_images)[:limit].split(self.session.run.batch_size):
            x_T = image_noise(trained.x_T_shape, self.seed, part.tolist()).to(trained.device)
            images.append(condition.decode(self.z_sem[part].to(trained.device), trained.network, x_T).cpu())
        return torch.cat(images)

    def _measured(self, metric: str, measure: Callable[[], Iterator[Row]]) -> list[Row]:
        """The rows; those before a metric that cannot be measured."""
        rows: list[Row] = []
        try:
            rows.extend(measure())
        except OmittableError as error:
            self.omit(metric, str(error))
        return rows

    def _z_sem_rows(self) -> Iterator[Row]:
        held_out, train = self.encoded
        statistics = LatentStatistics.of(held_out.z if train is None else train.z)
        samples, real = statistics.normalise(self.z_sem.numpy()), statistics.normalise(held_out.z)
        row = partial(self._row, {"features": "z_sem"})
        yield row("mmd", mmd(samples, real))
        yield from self._precision_and_recall({"features": "z_sem"}, real, samples, held_out.cases)
        if train is not None:
            known, rows = statistics.normalise(train.z), self._evenly_spaced(train.cases)
            yield from self._precision_and_recall(
                {"features": "z_sem"}, real, known[rows], held_out.cases, [train.cases[i] for i in rows]
            )
            distances = nearest_distances(samples, known), nearest_distances(real, known)
            yield self._copying({"features": "z_sem"}, *distances, held_out.cases)

    def _training_rows(self) -> Iterator[Row]:
        """The figures of training images in place of generated ones: what a perfect model would reach."""
        if self.train is None:
            return
        positions = self._evenly_spaced(self.train.cases)
        num, cases = len(positions), [self.train.cases[i] for i in positions]
        if num < self.num_images and self.networks:
            logger.warning(
                "fid_training uses all %d training images, but fid %d generated ones; FID is higher for fewer images, "
                "so compare them with num_images=%d", num, self.num_images, num,
            )  # fmt: skip
        images = torch.stack([self.train.batch(i, i + 1)[0][0] for i in positions])
        for name in self.networks:
            features, real = self._features(name, images), self._real_features[name]
            condition = {"features": name}
            yield self._row(condition, "fid_training", frechet_distance(features, real), num=num)
            yield self._row(condition, "kid_training", kernel_distance(features, real), num=num)
            yield from self._precision_and_recall(condition, real, features, self.held_out.cases, cases)

    def _evenly_spaced(self, cases: Sequence[Case]) -> list[int]:
        """The positions of as many training cases as there are generated images, or of all."""
        num = min(self.num_images, len(cases))
        return [i * len(cases) // num for i in range(num)]

    def _condition_rows(self, condition: DiffusionAutoencoderInferer) -> Iterator[Row]:
        images, fields = self.decode(condition), condition_of(condition)
        for name in self.networks:
            real, made = self._real_features[name], self._features(name, images)
            of_network = {**fields, "features": name}
            yield self._row(of_network, "fid", frechet_distance(made, real))
            yield self._row(of_network, "kid", kernel_distance(made, real))
            yield from self._precision_and_recall(of_network, real, made, self.held_out.cases)
        if self.train is not None and self._real_distances is not None:
            distances, _ = nearest_images(images, self.train, self.session.run.batch_size)
            yield self._copying({**fields, "features": "pixels"}, distances, self._real_distances, self.held_out.cases)

    @cached_property
    def _real_distances(self) -> Floats | None:
        """The pixel distance of each held-out image to its nearest training image, if there is one."""
        images, _ = self.held_out.batch(0, len(self.held_out.cases))
        return None if self.train is None else nearest_images(images, self.train, self.session.run.batch_size)[0]

    @cached_property
    def _real_features(self) -> dict[str, Floats]:
        """The features of the held-out images, by network."""
        size = self.session.run.batch_size
        batches = [self.held_out.batch(i, i + size)[0] for i in range(0, len(self.held_out.cases), size)]
        return {name: np.concatenate([self._features(name, batch) for batch in batches]) for name in self.networks}

    def draw_nearest(self, path: Path) -> None:
        """Draw the first generated images beside their nearest training cases, in pixels and in z_sem."""
        train = self.encoded[1]
        if self.train is None or train is None:
            return
        images = self.decode(max(self.conditions, key=lambda each: each.decoding_evaluations), _IN_PICTURE)
        distances, in_pixels = nearest_images(images, self.train, self.session.run.batch_size)
        statistics = LatentStatistics.of(train.z)
        near = nearest_neighbors(
            statistics.normalise(self.z_sem[: len(images)].numpy()), statistics.normalise(train.z), 1
        )
        rows = [
            zip(images, [f"generated {i}" for i in range(len(images))], strict=True),
            [(self.train.batch(i, i + 1)[0][0], f"nearest in pixels\n{d:.3f}")
             for i, d in zip(in_pixels, distances, strict=True)],
            [(self.train.batch(i, i + 1)[0][0], f"nearest in z_sem\n{d:.1f}")
             for i, d in zip(near.indices[:, 0].tolist(), near.distances[:, 0], strict=True)],
        ]  # fmt: skip
        draw_cells(rows, path, self.session.trained.model_range)

    def _features(self, name: str, images: Tensor) -> Floats:
        trained = self.session.trained
        parts = images.split(self.session.run.batch_size)
        features = [self.networks[name](part.to(trained.device), trained.model_range).cpu() for part in parts]
        return torch.cat(features).double().numpy()

    def _precision_and_recall(
        self, condition: Mapping[str, Any], real: Any, made: Any, cases: Sequence[Case],
        training_cases: Sequence[Case] | None = None,
    ) -> Iterator[Row]:  # fmt: skip
        """Precision and recall, with ``real`` features of the held-out ``cases``; ``made`` may be of training cases."""
        suffix = "" if training_cases is None else "_training"
        made_groups = range(len(made)) if training_cases is None else [case.patient for case in training_cases]
        metrics, all_groups = ("precision", "recall"), (made_groups, [case.patient for case in cases])
        for metric, values, groups in zip(metrics, precision_and_recall(real, made), all_groups, strict=True):
            ends = interval(bootstrapped(partial(_weighted_mean, values), list(groups), self.seed)[:, 0])
            yield self._row(condition, metric + suffix, float(values.mean()), ends, len(made))

    def _copying(
        self, condition: Mapping[str, Any], of_samples: Floats, of_held_out: Floats, cases: Sequence[Case]
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

        groups = [*(f"generated {i}" for i in range(len(of_samples))), *(case.patient for case in cases)]
        draws = bootstrapped(ratio, groups, self.seed)
        return self._row(condition, "copying_ratio", float(ratio(np.ones(len(distances)))[0]), interval(draws[:, 0]))

    def _row(
        self, condition: Mapping[str, Any], metric: str, value: float, ends: tuple[float, float] | None = None,
        num: int | None = None,
    ) -> Row:  # fmt: skip
        fields = {"table": GENERATION, "bundle": self.name, **condition}
        return summary_row(fields, metric, value, ends, self.num_images if num is None else num)


def _weighted_mean(values: Floats, weights: Floats) -> Floats:
    return np.array([weights @ values / weights.sum()])


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
