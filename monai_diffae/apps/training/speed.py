"""How long training takes on this machine, measured with the bundle's own trainer on a few of the cohort's scans."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader, Dataset

from monai_diffae.bundle.code import Parser
from monai_diffae.bundle.config import build
from monai_diffae.data import CachedCases
from monai_diffae.data.streamed import preprocessed
from monai_diffae.engines import ResumableTrainer

_MIN_STEPS, _MAX_STEPS, _MIN_SECONDS = 2, 50, 2.0  # after the first step, which is slower
_MAX_SECONDS = 15.0  # then the first step has to do
_CLEARLY = 1.3  # how much faster one thread has to be


@dataclass(frozen=True)
class Speed:
    """A measured speed of training.

    Attributes:
        seconds_per_step: time of a training step, with the augmentation of its images.
        batch_size: images per step.
        seconds_per_scan: time to read and preprocess a scan.
    """

    seconds_per_step: float
    batch_size: int
    seconds_per_scan: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Training images per second."""
        return self.batch_size / self.seconds_per_step

    def __str__(self) -> str:
        return (
            f"{self.seconds_per_step:.3g} s per step of {self.batch_size} images, {self.images_per_second:.3g} images "
            "per second"
        )

    def figures(self) -> dict[str, float]:
        """The speed as plain values."""
        numbers = {
            "seconds_per_step": self.seconds_per_step, "images_per_second": self.images_per_second,
            "seconds_per_scan": self.seconds_per_scan,
        }  # fmt: skip
        return {name: float(f"{value:.4g}") for name, value in numbers.items()}


def measure_speed(
    config: Mapping[str, Any], device: torch.device | str, items: Sequence[Mapping[str, Any]], batch_size: int
) -> Speed:
    """Train a new network for some seconds with a few items, which are read once, then augmented and repeated."""
    parser = Parser(copy.deepcopy(dict(config)))
    parser.update(
        {
            "device": str(device), "seed": int(parser.get_parsed_content("seed")), "train#dataset#data": list(items),
            "train#dataset#num_workers": 0, "train#dataset#progress": False,
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:  # not the training's own cache, in which latents would stay
        parser.update({"train#dataset#cache_dir": folder})
        dataset = build(parser, "train#dataset", CachedCases)
        dataset.prepare()
        start = time.perf_counter()
        preprocessed(dataset.transform, dataset.items[-1], dataset.keys)  # once more, as the first scan is slower
        seconds_per_scan = time.perf_counter() - start
        repeated = _Repeated(dataset, _MAX_STEPS * batch_size)
        parser.update(
            {
                "train#trainer#train_data_loader": DataLoader(repeated, batch_size),
                "train#trainer#train_handlers": "$[@ema]",
                "train#trainer#max_epochs": 1,
                "max_epochs": 1,
                "lr_schedule": "constant",
            }
        )
        trainer = build(parser, "train#trainer", ResumableTrainer)  # type: ignore[type-abstract]
        clock = _Clock(torch.device(device))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, clock)
        trainer.run()
    return Speed(clock.seconds_per_step, batch_size, seconds_per_scan)


def fastest(measure: Callable[[], Speed]) -> tuple[Speed, int | None]:
    """Measure with one thread of the CPU and with all, and keep the better number.

    Threads wait for each other at each operation. Where other programs use the processors, one thread can be several
    times as fast as two. Returns 1 beside the speed if torch now uses one thread because that is clearly faster, else
    None.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return measure(), None
    torch.set_num_threads(1)
    single = measure()
    torch.set_num_threads(threads)
    several = measure()
    if several.images_per_second * _CLEARLY > single.images_per_second:
        return several, None
    torch.set_num_threads(1)
    return single, 1


class _Repeated(Dataset[Any]):
    """The items of a dataset again and again, each time with another augmentation."""

    def __init__(self, dataset: CachedCases, length: int) -> None:
        self.dataset, self.length = dataset, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index, index % len(self.dataset)]


class _Clock:
    """Ignite handler: records when each step ends, and stops the training after enough steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times = [time.perf_counter()]

    @property
    def seconds_per_step(self) -> float:
        first = 1 if len(self._times) > 2 else 0  # the first step is slower
        return (self._times[-1] - self._times[first]) / (len(self._times) - 1 - first)

    def __call__(self, engine: Engine) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._times.append(time.perf_counter())
        steps, seconds = len(self._times) - 2, self._times[-1] - self._times[1]
        is_enough = steps >= _MIN_STEPS and seconds > _MIN_SECONDS
        if is_enough or self._times[-1] - self._times[0] > _MAX_SECONDS:
            engine.terminate()
