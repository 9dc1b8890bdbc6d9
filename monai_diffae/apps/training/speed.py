"""How fast this machine trains, measured on a few of the cohort's scans, and how much training fits into some time."""

import copy
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from monai_diffae.apps.training.grids import WIDTH, Machine, Proposal, nothing_fits
from monai_diffae.bundle.config import build
from monai_diffae.bundle.parser import Parser
from monai_diffae.data import CachedCases
from monai_diffae.data.streamed import preprocessed
from monai_diffae.engines import ResumableTrainer

logger = logging.getLogger(__name__)

TIME_KEYS = (
    "max_epochs", "max_minutes", "val_interval", "ema_decay", "num_pictures", "calibration_cases", "probe_interval"
)  # fmt: skip
"""Keys of the configuration for which the time decides."""

_MIN_STEPS, _MAX_STEPS, _MIN_SECONDS = 2, 50, 2.0  # after the first step, which is slower
_MAX_SECONDS = 15.0  # then the first step has to do

START_S = 15.0  # imports, configuration and network
_CHECKPOINT_S = 0.2  # at the end of each epoch
# in training images, whose forward and backward pass take about three forward passes
_PER_VALIDATED_IMAGE = 0.6  # encoder once, UNet twice
_PER_PICTURE_STEP = 1.25  # inverted, and decoded twice
_PER_CALIBRATED_IMAGE = 4.0  # UNet with eight noises, in float32
_VALIDATIONS, _VALIDATION_SHARE = 8, 0.1  # how many, and their largest share of the time
_SHARE = 0.05  # largest share of the time for the calibration, and for the pictures of one validation
_AVERAGED_SHARE = 0.05  # of the steps, over which weights are averaged
_SLACK = 0.95  # share of the time that is planned; steps are not equally fast

_MEASURING_S, _MOST_MEASUREMENTS = 40.0, 5  # no measurement begins later, so that all of them end within a minute
# images after which z_sem is used (z_sem_usage 1.3 or more), measured on small grids: docs/training.md
_IMAGES, _PIXELS, _GROWTH = 1500, 2304, 0.5
_AMPLE = 4  # a grid is preferred to a coarser one if the network sees this many times as many images on it
_FEWEST_STEPS = 150


@dataclass(frozen=True)
class Speed:
    """A measured speed of training."""

    seconds_per_step: float  # time of a training step, with the augmentation of its images
    batch_size: int  # images per step
    seconds_per_scan: float = 0.0  # time to read and preprocess a scan

    @property
    def images_per_second(self) -> float:
        """Training images per second."""
        return self.batch_size / self.seconds_per_step

    def needed_images(self, image_size: Sequence[int]) -> int:
        """Images of this size that the network should see so that z_sem is used."""
        growth = max(1.0, math.prod(image_size) / _PIXELS) ** _GROWTH
        return max(_FEWEST_STEPS * self.batch_size, int(_IMAGES * growth))

    def __str__(self) -> str:
        return (
            f"{self.seconds_per_step:.3g} s per step of {self.batch_size} images, {self.images_per_second:.3g} images "
            "per second"
        )


@dataclass(frozen=True)
class Timetable:
    """A training that ends within a budget of time."""

    #: values for keys of the configuration: ``max_epochs``, ``max_minutes`` and what depends on them
    settings: dict[str, Any]
    num_steps: int  #: training steps
    num_images: int  #: images that the network sees
    seconds: dict[str, float]  #: predicted duration of each part

    @property
    def total_s(self) -> float:
        """Predicted duration in seconds, from the start of the program."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        total, *parts = (timedelta(seconds=round(seconds)) for seconds in (self.total_s, *self.seconds.values()))
        return f"{total} ({', '.join(f'{name} {part}' for name, part in zip(self.seconds, parts, strict=True))})"


@dataclass(frozen=True)
class Work:
    """What a training has to do, whatever its grid."""

    num_train: int  # images in the training split
    num_val: int  # images in the validation split
    config: Mapping[str, Any]  # values of the configuration on which the time depends
    overrides: Mapping[str, Any]  # values that are decided already

    def timetable(self, speed: Speed, budget_s: float) -> Timetable:
        """Fill a budget of seconds, which includes the start of the program, with a training."""
        image_s = 1 / speed.images_per_second
        steps_per_epoch = max(1, self.num_train // speed.batch_size)
        reading_s = speed.seconds_per_scan * (self.num_train + self.num_val)
        available_s = max(0.0, budget_s - START_S - reading_s)
        calibrated = self._affordable("calibration_cases", _PER_CALIBRATED_IMAGE * image_s, available_s)
        calibrated = calibrated if calibrated > 1 else 0  # a calibration needs two patients
        calibration_s = calibrated * _PER_CALIBRATED_IMAGE * image_s
        picture_s = _PER_PICTURE_STEP * int(self.config["picture_steps"]) * image_s
        pictures = self._affordable("num_pictures", picture_s, available_s)
        validation_s = self.num_val * _PER_VALIDATED_IMAGE * image_s + pictures * picture_s
        validations = max(1, min(_VALIDATIONS, int(_VALIDATION_SHARE * available_s / validation_s)))
        training_s = _SLACK * available_s - calibration_s - validations * validation_s
        epoch_s = steps_per_epoch * speed.seconds_per_step + _CHECKPOINT_S
        epochs = int(self.overrides.get("max_epochs", max(1, training_s // epoch_s)))
        interval = int(self.overrides.get("val_interval", -(-epochs // validations)))
        steps = epochs * steps_per_epoch
        decay = min(1 - 1 / max(10, _AVERAGED_SHARE * steps), float(self.config["ema_decay"]))
        settings = {
            "max_epochs": epochs, "val_interval": interval, "ema_decay": float(f"{decay:.3g}"),
            "num_pictures": pictures, "calibration_cases": calibrated,
            "probe_interval": interval if self.config["probe_interval"] else 0,  # a training limits their time itself
            "max_minutes": round(max(available_s - calibration_s - validation_s, 1) / 60, 2),
        }  # fmt: skip
        seconds = {
            "start": START_S, "reading": reading_s, "training": epochs * epoch_s,
            "validation": -(-epochs // interval) * validation_s, "calibration": calibration_s,
        }  # fmt: skip
        return Timetable({**settings, **self.overrides}, steps, steps * speed.batch_size, seconds)

    def _affordable(self, key: str, image_s: float, available_s: float) -> int:
        """The configured number of validation images, of ``image_s`` seconds each, or what fits into their share."""
        number = int(self.config[key])
        return number if key in self.overrides else min(number, self.num_val, int(_SHARE * available_s / image_s))


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
        repeated = [(index, index % len(dataset)) for index in range(_MAX_STEPS * batch_size)]  # augmented each time
        loader: DataLoader[Any] = DataLoader(dataset, batch_size, sampler=repeated)
        parser.update(
            {
                "train#trainer#train_data_loader": loader, "train#trainer#train_handlers": "$[@ema]",
                "train#trainer#max_epochs": 1, "max_epochs": 1, "lr_schedule": "constant",
            }
        )  # fmt: skip
        trainer = build(parser, "train#trainer", ResumableTrainer)  # type: ignore[type-abstract]
        clock = _Clock(torch.device(device))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, clock)
        trainer.run()
    return Speed(clock.seconds_per_step, batch_size, seconds_per_scan)


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


def finest_in_time(
    machine: Machine,
    options: Sequence[Mapping[str, Any]],
    work: Work,
    measure: Callable[[Mapping[str, Any]], Speed],
    budget_s: float,
) -> tuple[Proposal, Speed]:
    """The finest of some grids on which a training ends in time, fits into memory and uses z_sem; or the coarsest.

    The coarsest grid is measured first. The time of a step grows at most with the number of pixels and the square of
    the width, so a measurement says how long all finer grids take at most. The finest one that ends in time is measured
    next, until none is finer.
    """

    def cost(index: int) -> float:
        return math.prod(options[index]["image_size"]) * float(options[index][WIDTH]) ** 2

    def is_enough(index: int, speed: Speed) -> bool:
        table = work.timetable(speed, budget_s)
        ample = _AMPLE * speed.needed_images(options[index]["image_size"])
        return table.total_s <= budget_s and table.num_images >= ample

    def is_promising(index: int) -> bool:
        return is_enough(index, replace(speed, seconds_per_step=speed.seconds_per_step * cost(index) / cost(measured)))

    logger.info("measuring how fast this machine trains")
    start, best = time.monotonic(), len(options) - 1
    proposal = machine.fit(options[best])
    if proposal is None:
        raise nothing_fits(machine)
    measured, speed = best, measure(proposal.settings)
    result, first = (proposal, speed), 0 if is_enough(best, speed) else best  # options[first:best] may be better
    for _ in range(_MOST_MEASUREMENTS - 1):
        promising = next((index for index in range(first, best) if is_promising(index)), best)
        fitting = ((index, machine.fit(options[index])) for index in range(promising, best))
        measured, proposal = next((pair for pair in fitting if pair[1] is not None), (best, None))
        if proposal is None or time.monotonic() > start + _MEASURING_S:
            break
        speed = measure(proposal.settings)
        if is_enough(measured, speed):
            result, best = (proposal, speed), measured
        else:
            first = measured + 1
    return result
