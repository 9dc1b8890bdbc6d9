"""Grids for a cohort, from fine to coarse, and the largest training on them that fits into memory."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_diffae.bundle.code import Parser
from monai_diffae.bundle.config import build, check_image_size, references
from monai_diffae.bundle.loading import check_latent_image_size
from monai_diffae.data.survey import Survey
from monai_diffae.engines.memory import GIB, Memory
from monai_diffae.engines.workload import Workload, run_memory
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.networks import FirstStage, anisotropic_strides
from monai_diffae.networks.arguments import size_divisors

logger = logging.getLogger(__name__)

COARSENINGS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
_LARGEST_2D = 256  # the largest image of the paper
WIDTH, LEVELS = "base_channels", "channel_mult"
_RECOMPUTE = "use_checkpoint"
_LATENT_MODE = "; or train in latent space, as docs/latent_mode.md describes"
WIDEST = 64  # the paper's width at 64 pixels


@dataclass(frozen=True)
class Proposal:
    """Settings that fit into memory, with the memory that training with them is predicted to use."""

    settings: dict[str, Any]
    memory: Memory


def propose(machine: Machine, survey: Survey) -> Proposal:
    """Propose the finest grid that fits into memory, and the largest batch on it.

    A finer grid has priority over a larger batch. Activations are recomputed only if less than half of the
    configuration's batch fits without. On a GPU, the network is then made wider as long as it fits.
    """
    for grid in grids(survey, len(machine.value(LEVELS)), machine.overrides, machine.factors):
        proposal = fit_grid(machine, {**grid, WIDTH: machine.value(WIDTH)})
        if proposal is not None:
            return _widened(machine, proposal)
    raise nothing_fits(machine, survey)


def open_machine(config: dict[str, Any], overrides: Mapping[str, Any], budget: int, device: torch.device) -> Machine:
    """A bundle's configuration on a device; its first stage is loaded if it has one."""
    return Machine(_with_first_stage(config, overrides), dict(overrides), budget, device)


def fit_grid(machine: Machine, settings: dict[str, Any]) -> Proposal | None:
    """The largest batch that fits into memory with a grid and a width; None: not even a single image fits.

    Activations are recomputed only if less than half of the configuration's batch fits without.
    """
    batch_size = int(machine.value("batch_size"))
    smallest, half = (batch_size, batch_size) if "batch_size" in machine.overrides else (1, (batch_size + 1) // 2)
    if not machine.fits({**settings, _RECOMPUTE: True, **_batches(machine, smallest, batch_size)}):
        return None
    for use_checkpoint, minimum in ((False, half), (True, smallest)):
        proposal = _largest_batch(machine, {**settings, _RECOMPUTE: use_checkpoint}, batch_size, minimum)
        if proposal is not None:
            return proposal
    return None


def nothing_fits(machine: Machine, survey: Survey) -> MachineError:
    """The error that names what to do if not even a single image of the coarsest grid fits."""
    can_use_latents = survey.spatial_dims == 3 and machine.first_stage is None
    return MachineError(
        f"memory_gib: nothing fits into {machine.budget / GIB:.2f} GiB; free memory, set a larger memory_gib, or make "
        f"the network narrower with overrides {WIDTH}=8" + (_LATENT_MODE if can_use_latents else "")
    )


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
    divisors = [f * d for f, d in zip(factors, size_divisors(3, strides), strict=True)]
    return spacing_mm, [-(-n // d) * d for n, d in zip(voxels, divisors, strict=True)]


def grid_2d(survey: Survey, coarsening: float, num_levels: int) -> list[int]:
    """Size of a square to which images are resized and padded: about their median longest side, at most 256."""
    divisor = 2**num_levels  # the encoder has one more level than the decoder
    longest = min(float(np.median(survey.sizes.max(axis=1))), _LARGEST_2D) / coarsening
    return [max(1, round(longest / divisor)) * divisor] * 2


def grids(
    survey: Survey, num_levels: int, overrides: Mapping[str, Any], factors: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Values of ``image_size``, and of ``spacing_mm`` for volumes, from fine to coarse; ``overrides`` are kept."""
    earlier: list[dict[str, Any]] = []
    for coarsening in COARSENINGS:
        if survey.spatial_dims == 3:
            spacing_mm, image_size = grid_3d(survey, coarsening, num_levels, factors)
            grid: dict[str, Any] = {"spacing_mm": spacing_mm, "image_size": image_size}
        else:
            grid = {"image_size": grid_2d(survey, coarsening, num_levels)}
        grid |= {key: value for key, value in overrides.items() if key in grid}
        if grid not in earlier:
            earlier.append(grid)
            yield grid


@dataclass(frozen=True)
class Machine:
    """A bundle's configuration on a device, which this machine need not have, with a budget of memory in bytes."""

    config: dict[str, Any]
    overrides: dict[str, Any]
    budget: int
    device: torch.device

    @property
    def first_stage(self) -> FirstStage | None:
        """The first stage on whose latents the network works; None: it works on images."""
        stage: FirstStage | None = self.config.get("first_stage")
        return stage

    @property
    def factors(self) -> Sequence[int]:
        """By how much a first stage reduces each axis of a volume before the network sees it."""
        return (1, 1, 1) if self.first_stage is None else self.first_stage.size_divisors

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
        memory = run_memory(*self.network_and_workload(settings))
        proposal = Proposal({**settings, **self.overrides}, memory)
        logger.debug("%.2f GiB: %s", memory.gib, proposal.settings)
        return proposal

    def network_and_workload(self, settings: Mapping[str, Any]) -> tuple[nn.Module, Workload]:
        """The network without data that these settings and the overrides describe, and the batches of its training."""
        parser = self._parser(settings)
        with torch.device("meta"):
            network = build(parser, "network_def", nn.Module)
        image_size = [int(n) for n in parser.get("image_size")]
        if self.first_stage is None:
            check_image_size(network, image_size)
        else:
            check_latent_image_size(self.first_stage, network, image_size)
        batch_size, val_batch_size, num_pictures = (
            int(parser.get(key)) for key in ("batch_size", "val_batch_size", "num_pictures")
        )
        shape = (int(parser.get("in_channels")), *image_size)
        workload = Workload(
            shape, self.device, parser.get("precision"), batch_size, val_batch_size, num_pictures, self.first_stage
        )
        return network, workload

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Whether training with these settings is within the budget."""
        return self.predict(settings).memory.total <= self.budget

    def _parser(self, settings: Mapping[str, Any]) -> ConfigParser:
        parser = Parser(copy.deepcopy(self.config))
        parser.update({**settings, **self.overrides})
        return parser


def _with_first_stage(config: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, with its first stage loaded if it names one."""
    if "first_stage" not in config:
        return config
    parser = Parser(copy.deepcopy(config))
    parser.update({**overrides, "device": "cpu"})
    if parser.get("first_stage_bundle") == "???":
        raise ConfigError("first_stage_bundle: is required; give a trained one with overrides first_stage_bundle=DIR")
    return {**config, "first_stage": build(parser, "first_stage", FirstStage)}


def _largest_batch(machine: Machine, settings: dict[str, Any], config_batch_size: int, minimum: int) -> Proposal | None:
    """The largest batch within the budget, from the configuration's down to ``minimum``; None: not even that fits."""
    batch_size = config_batch_size
    while batch_size >= minimum:
        proposal = machine.predict({**settings, **_batches(machine, batch_size, config_batch_size)})
        if proposal.memory.total <= machine.budget:
            return proposal
        # the weights do not shrink with the batch, so no larger batch than this can fit
        batch_size = min(batch_size - 1, int(batch_size * machine.budget / proposal.memory.total))
    return None


def _batches(machine: Machine, batch_size: int, config_batch_size: int) -> dict[str, Any]:
    """A batch size, accumulation to as many images per update as configured, and no larger batches in validation."""
    settings: dict[str, Any] = {"batch_size": batch_size}
    if batch_size < config_batch_size:
        images_per_update = config_batch_size * int(machine.value("accumulation_steps"))
        settings["accumulation_steps"] = math.ceil(images_per_update / batch_size)
        for key in ("val_batch_size", "num_pictures"):
            settings[key] = min(int(machine.value(key)), batch_size)
    return settings


def _widened(machine: Machine, proposal: Proposal) -> Proposal:
    """The proposal with a network twice as wide, as often as it fits; only on a GPU, where width costs little time."""
    width = int(machine.value(WIDTH))
    while machine.device.type == "cuda" and WIDTH not in machine.overrides and 2 * width <= WIDEST:
        width *= 2
        wider = machine.predict({**proposal.settings, WIDTH: width})
        if wider.memory.total > machine.budget:
            break
        proposal = wider
    return proposal
