"""Grids for a cohort, from fine to coarse, and the largest training on them that fits into memory."""

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

from monai_diffae.bundle.config import build, check_image_size, references
from monai_diffae.bundle.loading import check_latent_image_size
from monai_diffae.bundle.parser import Parser
from monai_diffae.data.inspection.survey import Survey
from monai_diffae.engines.memory import GIB, Memory, Workload, run_memory
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.networks import FirstStage, anisotropic_strides
from monai_diffae.networks.arguments import size_divisors

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
    device: torch.device
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
        image_size = [int(n) for n in parser.get("image_size")]
        if self.first_stage is None:
            check_image_size(network, image_size)
        else:
            check_latent_image_size(self.first_stage, network, image_size)
        batches = {key: int(parser.get(key)) for key in ("batch_size", "val_batch_size", "num_pictures")}
        shape = (int(parser.get("in_channels")), *image_size)
        workload = Workload(shape, self.device, parser.get("precision"), first_stage=self.first_stage, **batches)
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
        config = {**config, "first_stage": build(parser, "first_stage", FirstStage)}
    return Machine(config, overrides, budget, device, config.get("first_stage"))


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


def nothing_fits(machine: Machine) -> MachineError:
    """The error that names what to do if not even a single image of the coarsest grid fits."""
    can_use_latents = machine.value("spatial_dims") == 3 and machine.first_stage is None
    return MachineError(
        f"memory_gib: nothing fits into {machine.budget / GIB:.2f} GiB; free memory, set a larger memory_gib, or make "
        f"the network narrower with overrides {WIDTH}=8"
        + ("; or train in latent space, as docs/latent_mode.md describes" if can_use_latents else "")
    )
