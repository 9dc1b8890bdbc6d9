"""How long training takes on this machine, by steps of the bundle's own trainer on noise."""

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

_FEWEST, _MOST, _ENOUGH_S = 2, 50, 3.0  # steps behind the first, which is slower


@dataclass(frozen=True)
class Speed:
    """What was measured, and what follows.

    Attributes:
        seconds_a_step: of a batch.
        batch_size: images of a step.
        num_images: that the training split has.
        num_epochs: of the whole training.
    """

    seconds_a_step: float
    batch_size: int
    num_images: int
    num_epochs: int

    @property
    def images_a_second(self) -> float:
        """Images that are trained on in a second."""
        return self.batch_size / self.seconds_a_step

    @property
    def training_s(self) -> float:
        """Seconds that the steps of the whole training take, without reading, validation and pictures."""
        return self.num_epochs * max(1, self.num_images // self.batch_size) * self.seconds_a_step

    def __str__(self) -> str:
        whole = timedelta(seconds=max(1, round(self.training_s)))
        return (
            f"{self.seconds_a_step:.3g} s a step of {self.batch_size}, {self.images_a_second:.3g} images a second; "
            f"{self.num_epochs} epochs of {self.num_images} images take about {whole}, without reading and validation"
        )

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        numbers = {"seconds_a_step": self.seconds_a_step, "images_a_second": self.images_a_second}
        whole = {"num_images": self.num_images, "num_epochs": self.num_epochs, "training_s": self.training_s}
        return {**{name: float(f"{value:.4g}") for name, value in numbers.items()}, **whole}


def measure_speed(config: Mapping[str, Any], device: torch.device | str, num_images: int) -> Speed:
    """Train a fresh network for some seconds.

    Args:
        config: of the training, with all that is laid over it.
        device: where.
        num_images: of the training split; a batch holds no more.

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
            "train#trainer#train_data_loader": DataLoader([batch] * _MOST, batch_size=None),  # type: ignore[arg-type]
            "train#trainer#train_handlers": "$[@ema]",
            "train#trainer#max_epochs": 1,
        }
    )
    trainer = build(parser, "train#trainer", ResumableTrainer)  # type: ignore[type-abstract]
    clock = _Clock(torch.device(device))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, clock)
    trainer.run()
    return Speed(clock.seconds_a_step, batch_size, num_images, num_epochs)


def _noise(keys: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    return {**{key: torch.rand(*sizes) * 2 - 1 for key in keys}, "id": ["noise"] * sizes[0]}


class _Clock:
    """Notes when each step ends, and stops the training once they are enough."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: list[float] = []

    @property
    def seconds_a_step(self) -> float:
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)

    def __call__(self, engine: Engine) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._ends.append(time.perf_counter())
        if len(self._ends) > _FEWEST and self._ends[-1] - self._ends[0] > _ENOUGH_S:
            engine.terminate()
