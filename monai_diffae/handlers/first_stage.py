"""Handlers for first stages: the scale of their latents, their pictures, and a copy beside the model on the latents."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.engines import Workflow
from torch import Tensor

from monai_diffae.bundle.layout import CONFIG, FIRST_STAGE_PREFIX, MODEL
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cached import CachedCases
from monai_diffae.engines.latent_cases import LatentCases
from monai_diffae.engines.precision import autocast
from monai_diffae.engines.trainer import TrainingEvents
from monai_diffae.handlers.pictures import Pictures
from monai_diffae.networks import FirstStage


class LatentScale:
    """Ignite handler for the evaluator: after a validation, measure the scale of the averaged network's latents.

    The scale is stored in both networks, and thus in their checkpoints. It is measured on whole training images
    without augmentation, spread over the set.

    Args:
        averaged: the averaged network, which encodes the images.
        network: the network that is trained.
        dataset: the training images.
        num_images: how many of them are measured.
    """

    def __init__(self, averaged: FirstStage, network: FirstStage, dataset: CachedCases, num_images: int = 32) -> None:
        self.averaged, self.network = averaged, network
        self.dataset = dataset
        self.num_images = num_images

    def attach(self, engine: Workflow) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Measure the scale, in the evaluator's precision."""
        images = self.dataset.without_augmentation()
        size = len(images)
        count = min(self.num_images, size)
        with autocast(engine.state.device, engine.dtype):  # type: ignore[attr-defined]
            self.averaged.measure(images[i * size // count]["image"] for i in range(count))
        for buffer, measured in zip(self.network.buffers(), self.averaged.buffers(), strict=True):
            buffer.copy_(measured)


class FirstStageKeeper:
    """Ignite handler for the trainer of a model on a first stage's latents: copy the first stage beside the model.

    The model's bundle then has everything that it needs. The copy is made when the training starts, after all checks
    of the run.

    Args:
        source: the ``models`` folder of the first stage's own bundle.
        target: the ``models`` folder of the model.
    """

    def __init__(self, source: str | Path, target: str | Path) -> None:
        self.source, self.target = Path(source), Path(target)

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self) -> None:
        """Copy the first stage's weights and configuration."""
        for name in (CONFIG, MODEL):
            write_atomic(self.target / f"{FIRST_STAGE_PREFIX}{name}", partial(shutil.copyfile, self.source / name))


class LatentRemover:
    """Ignite handler for the trainer: at the end of a training, delete the latents that its datasets saved.

    A training that is interrupted keeps them, so that it can resume without encoding again.

    Args:
        datasets: the images of training and validation.
    """

    def __init__(self, datasets: Sequence[LatentCases]) -> None:
        self.datasets = list(datasets)

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer, also for a training that was complete already: its scans were read nevertheless."""
        engine.add_event_handler(TrainingEvents.ALREADY_COMPLETE, self)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self) -> None:
        """Delete them."""
        for dataset in self.datasets:
            dataset.remove_latents()


class FirstStagePictures(Pictures):
    """Ignite handler for the evaluator: after a validation, draw a few images and their reconstructions.

    Args:
        network: the averaged network.
        kwargs: arguments of :class:`~monai_diffae.handlers.pictures.Pictures`.
    """

    def __init__(self, *, network: FirstStage, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network

    def rows(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Images (B, C, *S) by their labels."""
        images = self._stack(items, self.image_key)
        return {"input": images, "reconstruction": self.network.decode(self.network.encode(images))}
