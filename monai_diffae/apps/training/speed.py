"""How long training takes on this machine, measured with steps of the bundle's own trainer on noise."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch.utils.data import DataLoader

from monai_diffae.bundle.loading import build
from monai_diffae.engines import ResumableTrainer

_MIN_STEPS, _MAX_STEPS, _MIN_SECONDS = 2, 50, 3.0  # after the first step, which is slower


@dataclass(frozen=True)
class Speed:
    """A measured speed of training.

    Attributes:
        seconds_per_step: time of a training step.
        batch_size: images per step.
        num_images: images in the training split.
        num_epochs: epochs of the whole training.
    """

    seconds_per_step: float
    batch_size: int
    num_images: int
    num_epochs: int

    @property
    def images_per_second(self) -> float:
        """Training images per second."""
        return self.batch_size / self.seconds_per_step

    @property
    def training_s(self) -> float:
        """Duration of the whole training in seconds, without reading, validation and pictures."""
        return self.num_epochs * max(1, self.num_images // self.batch_size) * self.seconds_per_step

    def __str__(self) -> str:
        whole = timedelta(seconds=max(1, round(self.training_s)))
        return (
            f"{self.seconds_per_step:.3g} s per step of {self.batch_size} images, {self.images_per_second:.3g} images "
            f"per second; {self.num_epochs} epochs of {self.num_images} images take about {whole}, without reading and "
            "validation"
        )

    def figures(self) -> dict[str, Any]:
        """The speed, and what follows for the whole training, as plain values."""
        numbers = {"seconds_per_step": self.seconds_per_step, "images_per_second": self.images_per_second}
        whole = {"num_images": self.num_images, "num_epochs": self.num_epochs, "training_s": self.training_s}
        return {**{name: float(f"{value:.4g}") for name, value in numbers.items()}, **whole}


def measure_speed(config: Mapping[str, Any], device: torch.device | str, num_images: int) -> Speed:
    """Train a new network on noise for some seconds.

    Args:
        config: the configuration of the training, with all overlays and overrides.
        device: where to train.
        num_images: images in the training split; a batch holds no more.

    Raises:
        ConfigError: the trainer cannot be built, or its loss is not finite.
    """
    parser = ConfigParser(copy.deepcopy(dict(config)))
    parser.update({"device": str(device)})
    batch_size = max(1, min(int(parser.get_parsed_content("batch_size")), num_images))
    num_epochs = int(parser.get_parsed_content("max_epochs"))
    sizes = [batch_size, int(parser.get("in_channels")), *parser.get("image_size")]
    batch = _noise(parser.get("image_keys"), sizes)
    parser.update(
        {
            "train#trainer#train_data_loader": DataLoader([batch] * _MAX_STEPS, batch_size=None),  # type: ignore[arg-type]
            "train#trainer#train_handlers": "$[@ema]",
            "train#trainer#max_epochs": 1,
        }
    )
    trainer = build(parser, "train#trainer", ResumableTrainer)  # type: ignore[type-abstract]
    clock = _Clock(torch.device(device))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, clock)
    trainer.run()
    return Speed(clock.seconds_per_step, batch_size, num_images, num_epochs)


def _noise(keys: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    return {**{key: torch.rand(*sizes) * 2 - 1 for key in keys}, "id": ["noise"] * sizes[0]}


class _Clock:
    """Ignite handler: records when each step ends, and stops the training after enough steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: list[float] = []

    @property
    def seconds_per_step(self) -> float:
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)

    def __call__(self, engine: Engine) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._ends.append(time.perf_counter())
        if len(self._ends) > _MIN_STEPS and self._ends[-1] - self._ends[0] > _MIN_SECONDS:
            engine.terminate()
