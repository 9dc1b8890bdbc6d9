"""Handlers for first stages: the scale of their latents, their pictures, and the files of latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Events
from monai.engines import Workflow
from torch import Tensor

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
