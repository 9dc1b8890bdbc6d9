"""What fits into this machine's memory, how fast it trains, measured on a few scans, and what fits into some time."""

import copy
import logging
import math
import tempfile
import time
from collections import UserList
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from torch import nn
from torch.utils.data import DataLoader

from monai_diffae.bundle.config import build, references
from monai_diffae.bundle.parser import Parser
from monai_diffae.bundle.training import checked_workload
from monai_diffae.data import CachedCases
from monai_diffae.data.inspection.survey import Survey
from monai_diffae.data.streamed import preprocessed
from monai_diffae.engines import ResumableTrainer
from monai_diffae.engines.memory import GIB, Memory, run_memory
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.networks import FirstStage, anisotropic_strides
from monai_diffae.networks.arguments import strides_product

logger = logging.getLogger(__name__)

WIDTH, LEVELS = "base_channels", "channel_mult"
_RECOMPUTE = "use_checkpoint"
_COARSENINGS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
_LARGEST_2D = 256  # the largest image of the paper
_WIDEST = 64  # the paper's width at 64 pixels
_FEW_LEVELS = 3  # of small grids, on which more levels would see a few pixels
_SMALL = {2: 64, 3: 48}  # longest side of small grids, in pixels
_FEWEST_PIXELS = {2: 32, 3: 10}  # longest side of the coarsest grid that is worth a training
_CELL, _MOST_CELLS = 4, 4  # z_grid of small volumes: a cell for so many voxels, and at most so many cells along an axis


@dataclass(frozen=True)
class Proposal:
    """Settings that fit into memory."""

    settings: dict[str, Any]  # values for keys of the configuration
    memory: Memory  # the memory that training with them is predicted to use


@dataclass(frozen=True)
class Machine:
    """A bundle's configuration on a device, with a budget of memory in bytes."""

    config: dict[str, Any]
    overrides: Mapping[str, Any]
    budget: int
    first_stage: FirstStage | None  # on whose latents the network works; None: it works on images

    def value(self, key: str) -> Any:
        """The value of a key of the configuration with the overrides."""
        parser = self._parser({})
        is_used = key not in (WIDTH, LEVELS, _RECOMPUTE) or key in references(parser.get("network_def"))
        if key not in parser or not is_used:
            raise ConfigError(
                f"{key}: the network has no such key in the configuration, for which plan proposes values; choose "
                "a bundle of a diffusion autoencoder"
            )
        return parser.get(key)

    def predict(self, settings: Mapping[str, Any]) -> Proposal:
        """These settings with the overrides, and the memory that training with them uses."""
        parser = self._parser(settings)
        with torch.device("meta"):
            network = build(parser, "network_def", nn.Module)
        workload = checked_workload(parser, network, self.first_stage)
        proposal = Proposal({**settings, **self.overrides}, run_memory(network, workload))
        logger.debug("%.2f GiB: %s", proposal.memory.gib, proposal.settings)
        return proposal

    def fit(self, settings: Mapping[str, Any]) -> Proposal | None:
        """The largest batch that fits into memory with a grid and a width; None: not even a single image fits."""
        configured = int(self.value("batch_size"))
        number = 1 if "batch_size" in self.overrides else configured.bit_length()
        sizes = [configured >> i for i in range(number)]  # halved again and again
        choices = [(False, sizes[:2]), (True, sizes)]
        options = [{_RECOMPUTE: is_recomputed, **self._batches(n)} for is_recomputed, some in choices for n in some]
        smallest = self.predict({**settings, **options.pop()})
        if smallest.memory.total > self.budget:
            return None
        proposals = (self.predict({**settings, **option}) for option in options)
        return next((proposal for proposal in proposals if proposal.memory.total <= self.budget), smallest)

    def _batches(self, batch_size: int) -> dict[str, Any]:
        """A batch size, accumulation to the configured number of images per update, and no larger batches elsewhere."""
        configured = int(self.value("batch_size"))
        if batch_size == configured:
            return {"batch_size": batch_size}
        images_per_update = configured * int(self.value("accumulation_steps"))
        others = {key: min(int(self.value(key)), batch_size) for key in ("val_batch_size", "num_pictures")}
        return {"batch_size": batch_size, "accumulation_steps": math.ceil(images_per_update / batch_size), **others}

    def _parser(self, settings: Mapping[str, Any]) -> ConfigParser:
        parser = Parser(copy.deepcopy(self.config))
        parser.update({**settings, **self.overrides})
        return parser


def open_machine(config: dict[str, Any], overrides: Mapping[str, Any], budget: int, device: torch.device) -> Machine:
    """A bundle's configuration on a device; its first stage is loaded if it has one."""
    if "first_stage" in config:
        parser = Parser(copy.deepcopy(config))
        parser.update({**overrides, "device": "cpu"})
        if parser.get("first_stage_bundle") == "???":
            raise ConfigError(
                "first_stage_bundle: is required; give a trained one with overrides first_stage_bundle=DIR"
            )
        stage = build(parser, "first_stage", FirstStage)
        stage.latent_std.nan_to_num_(1.0), stage.latent_mean.nan_to_num_()  # the time does not depend on them
        config = {**config, "first_stage": stage}
    return Machine({**config, "device": device}, overrides, budget, config.get("first_stage"))


def grid_3d(
    survey: Survey, coarsening: float, num_levels: int, factors: Sequence[int] = (1, 1, 1)
) -> tuple[list[float], list[int]]:
    """Spacing in mm and size of a grid that holds 95 % of the fields of view along each axis.

    Axes whose spacing is less than twice the finest get the same spacing. Axes with a larger spacing keep it until the
    others are as coarse. Sizes are rounded up so that the network's levels can halve them. ``coarsening`` multiplies
    the cohort's median spacing; ``factors`` are by how much a first stage reduces each axis before the network sees it.
    """
    median = np.median(survey.spacings_mm, axis=0)
    fine = median < 2 * median.min()
    spacing = np.maximum(np.where(fine, 0, median), np.median(median[fine]) * coarsening)
    spacing_mm = [float(f"{v:.3g}") for v in spacing]
    # the strides of a network on images so large that every axis can be halved
    strides = anisotropic_strides([2**16] * 3, spacing_mm, num_levels - 1)
    field = np.percentile(survey.fields_mm, 95, axis=0)
    voxels = [math.ceil(mm / step - 1e-3) for mm, step in zip(field, spacing_mm, strict=True)]
    divisors = [f * d for f, d in zip(factors, strides_product(3, strides), strict=True)]
    return spacing_mm, [-(-n // d) * d for n, d in zip(voxels, divisors, strict=True)]


def grid_2d(survey: Survey, coarsening: float, num_levels: int) -> list[int]:
    """Size of a square to which images are resized and padded: about their median longest side, at most 256."""
    divisor = 2**num_levels  # the encoder has one more level than the decoder
    longest = min(float(np.median(survey.sizes.max(axis=1))), _LARGEST_2D) / coarsening
    return [max(1, round(longest / divisor)) * divisor] * 2


def _grids(machine: Machine, survey: Survey, num_levels: int) -> Iterator[dict[str, Any]]:
    """Values of ``image_size``, and of ``spacing_mm`` for volumes, from fine to coarse; overrides are kept."""
    factors = (1, 1, 1) if machine.first_stage is None else machine.first_stage.size_divisors
    earlier: list[dict[str, Any]] = []
    for coarsening in _COARSENINGS:
        if survey.spatial_dims == 3:
            spacing_mm, image_size = grid_3d(survey, coarsening, num_levels, factors)
            grid: dict[str, Any] = {"spacing_mm": spacing_mm, "image_size": image_size}
        else:
            grid = {"image_size": grid_2d(survey, coarsening, num_levels)}
        grid |= {key: value for key, value in machine.overrides.items() if key in grid}
        if grid not in earlier:
            earlier.append(grid)
            yield grid


def grid_options(machine: Machine, survey: Survey) -> list[dict[str, Any]]:
    """Grids and widths, from expensive to cheap; small grids have fewer levels and, in 3D, more cells of z_grid."""
    levels, width, dims = list(machine.value(LEVELS)), int(machine.value(WIDTH)), survey.spatial_dims
    grids = list(_grids(machine, survey, len(levels)))
    if len(levels) > _FEW_LEVELS and LEVELS not in machine.overrides:
        grids = [grid for grid in grids if max(grid["image_size"]) > _SMALL[dims]]
        for grid in _grids(machine, survey, _FEW_LEVELS):
            if max(grid["image_size"]) <= _SMALL[dims]:
                grids.append({**grid, LEVELS: levels[:_FEW_LEVELS]})
                if dims == 3 and "z_grid" not in machine.overrides and "z_grid" in machine.config:
                    grids[-1]["z_grid"] = [max(1, min(_MOST_CELLS, side // _CELL)) for side in grid["image_size"]]
    grids = [grid for grid in grids if max(grid["image_size"]) >= _FEWEST_PIXELS[dims]] or grids[-1:]
    factors = () if WIDTH in machine.overrides else (8, 4, 2)
    wide = [{**grids[0], WIDTH: width * factor} for factor in factors if width * factor <= _WIDEST]
    return [*wide, *({**grid, WIDTH: width} for grid in grids)]


# -- speed and time ----------------------------------------------------------------------------------------------------

TIME_KEYS = (
    "max_epochs",
    "max_minutes",
    "val_interval",
    "ema_decay",
    "num_pictures",
    "calibration_cases",
    "probe_interval",
)
"""Keys of the configuration for which the time decides."""

_MIN_STEPS, _MAX_STEPS = 2, 50  # after the first step, which is slower
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
            "max_epochs": epochs,
            "val_interval": interval,
            "ema_decay": float(f"{decay:.3g}"),
            "num_pictures": pictures,
            "calibration_cases": calibrated,
            "probe_interval": interval if self.config["probe_interval"] else 0,  # a training limits their time itself
            "max_minutes": round(max(available_s - calibration_s - validation_s, 1) / 60, 2),
        }
        seconds = {
            "start": START_S,
            "reading": reading_s,
            "training": epochs * epoch_s,
            "validation": -(-epochs // interval) * validation_s,
            "calibration": calibration_s,
        }
        return Timetable({**settings, **self.overrides}, steps, steps * speed.batch_size, seconds)

    def _affordable(self, key: str, image_s: float, available_s: float) -> int:
        """The configured number of validation images, of ``image_s`` seconds each, or what fits into their share."""
        number = int(self.config[key])
        return number if key in self.overrides else min(number, self.num_val, int(_SHARE * available_s / image_s))


def measure_speed(
    config: Mapping[str, Any],
    device: torch.device | str,
    items: Sequence[Mapping[str, Any]],
    batch_size: int,
    min_seconds: float = 2.0,
) -> Speed:
    """Train a new network for some seconds with a few items, which are read once, then augmented and repeated."""
    parser = Parser(copy.deepcopy(dict(config)))
    parser.update(
        {
            "device": str(device),
            "seed": int(parser.get_parsed_content("seed")),
            "train#dataset#num_workers": 0,
            "train#dataset#data": UserList(items),  # not a list, in whose texts MONAI replaces "#"
        }
    )
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
                "train#trainer#train_data_loader": loader,
                "train#trainer#train_handlers": "$[@ema]",
                "train#trainer#max_epochs": 1,
                "max_epochs": 1,
                "lr_schedule": "constant",
            }
        )
        trainer = build(parser, "train#trainer", ResumableTrainer)  # type: ignore[type-abstract]
        times = [time.perf_counter()]

        def note() -> None:
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter())
            is_enough = len(times) - 2 >= _MIN_STEPS and times[-1] - times[1] > min_seconds
            if is_enough or times[-1] - times[0] > _MAX_SECONDS:
                trainer.terminate()

        trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
        trainer.run()
    first = 1 if len(times) > 2 else 0  # the first step is slower
    return Speed((times[-1] - times[first]) / (len(times) - 1 - first), batch_size, seconds_per_scan)


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

    level = logging.INFO if len(options) > 1 else logging.DEBUG  # for one grid, as in start after its plan, it is quick
    logger.log(level, "measuring how fast this machine trains")
    start, best = time.monotonic(), len(options) - 1
    proposal = machine.fit(options[best])
    if proposal is None:
        can_use_latents = machine.value("spatial_dims") == 3 and machine.first_stage is None
        raise MachineError(
            f"memory_gib: nothing fits into {machine.budget / GIB:.2f} GiB; free memory, set a larger memory_gib, or "
            f"make the network narrower with overrides {WIDTH}=8"
            + ("; or train in latent space, as docs/latent_mode.md describes" if can_use_latents else "")
        )
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
