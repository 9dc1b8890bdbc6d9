"""Grids for a cohort, from fine to coarse, and the largest training on them that fits a memory."""

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

from monai_diffae.bundle.config import check_image_size
from monai_diffae.bundle.config_values import references
from monai_diffae.bundle.first_stages import check_latent_image_size
from monai_diffae.bundle.loading import build
from monai_diffae.data.survey import Survey
from monai_diffae.engines.memory import GIB, Memory
from monai_diffae.engines.workload import Workload, run_memory
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.networks import FirstStage, anisotropic_strides
from monai_diffae.networks.strides import size_divisors

logger = logging.getLogger(__name__)

COARSENINGS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
_LARGEST_2D = 256  # the largest image of the paper
_WIDTH, _LEVELS, _RECOMPUTE = "base_channels", "channel_mult", "use_checkpoint"
_LATENT_MODE = (
    "; or take the latent mode: monai-diffae init my_first_stage --bundle autoencoder_kl_3d (docs/latent_mode.md)"
)
_WIDEST = 64  # the paper's width at 64 pixels


@dataclass(frozen=True)
class Proposal:
    """Settings that fit.

    Attributes:
        settings: config ids and values.
        memory: that training with them is predicted to take.
    """

    settings: dict[str, Any]
    memory: Memory


def propose(
    config: dict[str, Any],
    survey: Survey,
    budget: int,
    device: torch.device,
    overrides: Mapping[str, Any],
) -> Proposal:
    """The finest grid that fits, with the largest batch up to the config's; recomputing only where it must.

    A finer grid comes first. On it, at least half of the config's batch without recomputation, then any batch with
    it. On a GPU wider networks follow while they fit.

    Args:
        config: the bundle's ``train.json`` with the overlays that are laid over it.
        survey: of the cohort.
        budget: bytes.
        device: where training will run.
        overrides: config ids and values that are settled.

    Raises:
        ConfigError: the network is none of those whose width can be chosen.
        MachineError: not even a single image of the coarsest grid fits.
    """
    machine = _Machine(_with_first_stage(config, overrides), dict(overrides), budget, device)
    factors = (1, 1, 1) if machine.first_stage is None else machine.first_stage.size_divisors
    wanted = int(machine.value("batch_size"))
    least, half = (wanted, wanted) if "batch_size" in overrides else (1, (wanted + 1) // 2)
    for grid in _grids(survey, len(machine.value(_LEVELS)), overrides, factors):
        grid[_WIDTH] = machine.value(_WIDTH)
        if not machine.fits({**grid, _RECOMPUTE: True, **_batches(machine, least, wanted)}):
            continue
        for use_checkpoint, fewest in ((False, half), (True, least)):
            found = _largest_batch(machine, {**grid, _RECOMPUTE: use_checkpoint}, wanted, fewest)
            if found is not None:
                return _widened(machine, found)
    is_for_first_stage = survey.spatial_dims == 3 and machine.first_stage is None
    raise MachineError(
        f"nothing fits {budget / GIB:.2f} GiB: free memory, give a larger --memory-gib, or narrow the network, as "
        "--set base_channels=8" + (_LATENT_MODE if is_for_first_stage else "")
    )


def grid_3d(
    survey: Survey, coarsening: float, num_levels: int, factors: Sequence[int] = (1, 1, 1)
) -> tuple[list[float], list[int]]:
    """Millimetres between voxels and the size of a grid that holds 95 % of the fields along each axis.

    Axes that are less than twice as thick as the finest one get the same spacing; thicker ones keep their own until
    the others are as coarse. Sizes are rounded up to what the levels' strides divide.

    Args:
        survey: of volumes.
        coarsening: 1: the cohort's median spacing; 2: twice that.
        num_levels: of the network.
        factors: by which a first stage makes volumes smaller before the network sees them.
    """
    median = np.median(survey.spacings_mm, axis=0)
    fine = median < 2 * median.min()
    spacing = np.maximum(np.where(fine, 0, median), np.median(median[fine]) * coarsening)
    spacing_mm = [float(f"{v:.3g}") for v in spacing]
    # as if every axis could be halved: what strides a network on large images would have
    strides = anisotropic_strides([2**16] * 3, spacing_mm, num_levels - 1)
    field = np.percentile(survey.fields_mm, 95, axis=0)
    voxels = [math.ceil(mm / step - 1e-3) for mm, step in zip(field, spacing_mm, strict=True)]
    divisors = [f * d for f, d in zip(factors, size_divisors(3, strides), strict=True)]
    return spacing_mm, [-(-n // d) * d for n, d in zip(voxels, divisors, strict=True)]


def grid_2d(survey: Survey, coarsening: float, num_levels: int) -> list[int]:
    """A square of about the median longest side, which images are resized to and padded; 256 at most."""
    divisor = 2**num_levels  # the encoder has one level more than the decoder
    longest = min(float(np.median(survey.sizes.max(axis=1))), _LARGEST_2D) / coarsening
    return [max(1, round(longest / divisor)) * divisor] * 2


def _grids(
    survey: Survey, num_levels: int, overrides: Mapping[str, Any], factors: Sequence[int]
) -> Iterator[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    for coarsening in COARSENINGS:
        if survey.spatial_dims == 3:
            spacing_mm, image_size = grid_3d(survey, coarsening, num_levels, factors)
            grid: dict[str, Any] = {"spacing_mm": spacing_mm, "image_size": image_size}
        else:
            grid = {"image_size": grid_2d(survey, coarsening, num_levels)}
        grid |= {key: value for key, value in overrides.items() if key in grid}
        if grid not in seen:
            seen.append(grid)
            yield grid


@dataclass(frozen=True)
class _Machine:
    """A bundle's config on a device, with a budget in bytes."""

    config: dict[str, Any]
    overrides: dict[str, Any]
    budget: int
    device: torch.device

    @property
    def first_stage(self) -> FirstStage | None:
        """Whose latents the network works on."""
        stage: FirstStage | None = self.config.get("first_stage")
        return stage

    def value(self, key: str) -> Any:
        """A key's value in the config with the overrides.

        Raises:
            ConfigError: there is no such key, or the network is not built with it.
        """
        parser = self._parser({})
        is_of_network = key not in (_WIDTH, _LEVELS, _RECOMPUTE) or key in references(parser.get("network_def"))
        if key not in parser or not is_of_network:
            raise ConfigError(
                f"{key}: the config has no such key of its network, for which plan proposes values; plan a diffusion "
                "autoencoder"
            )
        return parser.get(key)

    def predict(self, settings: Mapping[str, Any]) -> Proposal:
        """What a training with these settings takes; overrides go first."""
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
        memory = run_memory(network, workload)
        proposal = Proposal({**settings, **self.overrides}, memory)
        logger.debug("%.2f GiB: %s", memory.gib, proposal.settings)
        return proposal

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Whether they are within the budget."""
        return self.predict(settings).memory.total <= self.budget

    def _parser(self, settings: Mapping[str, Any]) -> ConfigParser:
        parser = ConfigParser(copy.deepcopy(self.config))
        parser.update({**settings, **self.overrides})
        return parser


def _with_first_stage(config: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config, with the first stage that it may name read once."""
    if "first_stage" not in config:
        return config
    parser = ConfigParser(copy.deepcopy(config))
    parser.update({**overrides, "device": "cpu"})
    if parser.get("first_stage_bundle") == "???":
        raise ConfigError("first_stage_bundle is not set; name a trained one, as --set first_stage_bundle=DIR")
    return {**config, "first_stage": build(parser, "first_stage", FirstStage)}


def _largest_batch(machine: _Machine, settings: dict[str, Any], wanted: int, fewest: int) -> Proposal | None:
    batch_size = wanted
    while batch_size >= fewest:
        proposal = machine.predict({**settings, **_batches(machine, batch_size, wanted)})
        if proposal.memory.total <= machine.budget:
            return proposal
        # weights do not shrink with the batch, so no larger one than this can fit
        batch_size = min(batch_size - 1, int(batch_size * machine.budget / proposal.memory.total))
    return None


def _batches(machine: _Machine, batch_size: int, wanted: int) -> dict[str, Any]:
    """The batch, with as many images an update as the config has; validation and pictures no larger than it."""
    settings: dict[str, Any] = {"batch_size": batch_size}
    if batch_size < wanted:
        settings["accumulation_steps"] = math.ceil(wanted * int(machine.value("accumulation_steps")) / batch_size)
        for key in ("val_batch_size", "num_pictures"):
            settings[key] = min(int(machine.value(key)), batch_size)
    return settings


def _widened(machine: _Machine, found: Proposal) -> Proposal:
    """Twice as wide while it fits, where that costs little time."""
    width = int(machine.value(_WIDTH))
    while machine.device.type == "cuda" and _WIDTH not in machine.overrides and 2 * width <= _WIDEST:
        width *= 2
        wider = machine.predict({**found.settings, _WIDTH: width})
        if wider.memory.total > machine.budget:
            break
        found = wider
    return found
