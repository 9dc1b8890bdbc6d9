"""The finest grid on which a training ends within some minutes and uses z_sem well."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from monai_diffae.apps.training.proposals import LEVELS, WIDEST, WIDTH, Machine, Proposal, fit_grid, grids, nothing_fits
from monai_diffae.apps.training.speed import Speed, fastest
from monai_diffae.apps.training.timetables import Timetable, Work
from monai_diffae.data.progress import progress
from monai_diffae.data.survey import Survey

MEASURING_S = 40.0  # no measurement begins later, so that all of them end within a minute
_MOST_MEASUREMENTS = 5
_FEW_LEVELS = 3  # of small grids, on which more levels would see a few pixels
_SMALL = {2: 64, 3: 48}  # longest side of small grids, in pixels
_FEWEST_PIXELS = {2: 32, 3: 10}  # longest side of the coarsest grid that is worth a training
_CELL, _MOST_CELLS = 4, 4  # z_grid of small volumes: a cell for so many voxels, and at most so many cells along an axis

# images after which z_sem is used (z_sem_usage 1.3 or more), measured on small grids: docs/training.md
_IMAGES, _PIXELS, _GROWTH = 1500, 2304, 0.5
_AMPLE = 4  # a grid is preferred to a coarser one if the network sees this many times as many images on it
_FEWEST_STEPS = 150


@dataclass(frozen=True)
class TimedProposal:
    """Settings of a training that ends within a budget of time.

    Attributes:
        grid: grid, network and batch, with the memory that they need.
        speed: the speed of training with them on this machine.
        work: what the training has to do.
        timetable: how long each part takes, and how many epochs the training has.
        needed_images: images that the network should see so that z_sem is used.
        budget_s: seconds for everything.
        threads: threads of the CPU to train with, if other programs use it; None: as many as torch uses.
    """

    grid: Proposal
    speed: Speed
    work: Work
    timetable: Timetable
    needed_images: int
    budget_s: float
    threads: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """Values for keys of the configuration."""
        return {**self.grid.settings, **self.timetable.settings}

    @property
    def uses_z_sem(self) -> bool:
        """Whether the network sees as many images as it should."""
        return self.timetable.num_images >= self.needed_images

    @property
    def ends_in_time(self) -> bool:
        """Whether even the shortest training, of one epoch, ends within the budget."""
        return self.timetable.total_s <= self.budget_s

    def within(self, budget_s: float) -> TimedProposal:
        """The same grid with another budget of seconds."""
        return replace(self, timetable=self.work.timetable(self.speed, budget_s), budget_s=budget_s)

    def figures(self) -> dict[str, Any]:
        """Speed and durations as plain values."""
        table = self.timetable
        return {
            **self.speed.figures(), "predicted_s": round(table.total_s, 1),
            "parts_s": {name: round(seconds, 1) for name, seconds in table.seconds.items()},
            "num_images": table.num_images, "num_steps": table.num_steps, "needed_images": self.needed_images,
            "threads": self.threads,
        }  # fmt: skip


@dataclass(frozen=True)
class _Candidate:
    """A grid and a width, with the network's levels."""

    settings: dict[str, Any]

    @property
    def pixels(self) -> int:
        return math.prod(self.settings["image_size"])

    @property
    def step_cost(self) -> float:
        """How long a step of training takes at most, up to a factor that is the same for all candidates."""
        return self.pixels * float(self.settings[WIDTH]) ** 2

    def needed_images(self, batch_size: int) -> int:
        """Images that the network should see so that z_sem is used."""
        return max(_FEWEST_STEPS * batch_size, int(_IMAGES * max(1.0, self.pixels / _PIXELS) ** _GROWTH))


def propose_in_time(
    machine: Machine, survey: Survey, work: Work, measure: Callable[[Mapping[str, Any]], Speed], budget_s: float
) -> TimedProposal:
    """Propose the finest grid on which a training ends in time, fits into memory and uses z_sem well; or the coarsest.

    The coarsest grid is measured first. The time of a step grows at most with the number of pixels, so a measurement
    says how long all finer grids take at most. The finest one that ends in time is measured next, until none is finer.
    """
    search = _Search(machine, list(_candidates(machine, survey)), work, budget_s)
    coarsest = len(search.candidates) - 1
    grid = fit_grid(machine, search.candidates[coarsest].settings)
    if grid is None:
        raise nothing_fits(machine, survey)
    timer = _Timer(measure)
    with progress(_MOST_MEASUREMENTS, "measuring how fast this machine trains") as advance:
        if machine.device.type == "cpu":
            speed, threads = fastest(partial(timer, grid.settings))
        else:
            speed, threads = timer(grid.settings), None
        best = search.proposal(coarsest, grid, speed, threads)
        candidates = range(coarsest if search.is_enough(coarsest, best.timetable, speed) else 0)  # may be better
        measured = coarsest
        for _ in range(_MOST_MEASUREMENTS - 1):
            advance()
            following = search.following(candidates, measured, speed)
            if following is None or timer.seconds > MEASURING_S:
                break
            measured, grid = following
            speed = timer(grid.settings)
            proposal = search.proposal(measured, grid, speed, threads)
            if search.is_enough(measured, proposal.timetable, speed):
                best, candidates = proposal, range(candidates.start, measured)
            else:
                candidates = range(measured + 1, candidates.stop)
    return best


class _Timer:
    """Measures speeds, and how long that takes."""

    def __init__(self, measure: Callable[[Mapping[str, Any]], Speed]) -> None:
        self._measure, self.seconds = measure, 0.0

    def __call__(self, settings: Mapping[str, Any]) -> Speed:
        start = time.monotonic()
        speed = self._measure(settings)
        self.seconds += time.monotonic() - start
        return speed


@dataclass(frozen=True)
class _Search:
    """A search among candidates, whose steps are sorted from expensive to cheap."""

    machine: Machine
    candidates: list[_Candidate]
    work: Work
    budget_s: float

    def following(self, indices: range, measured: int, speed: Speed) -> tuple[int, Proposal] | None:
        """The first of some candidates that, by the speed of another one, learns enough in time; and that fits."""
        for index in indices:
            ratio = self.candidates[index].step_cost / self.candidates[measured].step_cost
            scaled = replace(speed, seconds_per_step=speed.seconds_per_step * ratio)
            if self.is_enough(index, self.work.timetable(scaled, self.budget_s), speed):
                return self._first_that_fits(range(index, indices.stop))
        return None

    def is_enough(self, index: int, timetable: Timetable, speed: Speed) -> bool:
        """Whether a candidate's training ends in time, and sees so many images that z_sem is used well."""
        ample = _AMPLE * self.candidates[index].needed_images(speed.batch_size)
        return timetable.num_images >= ample and timetable.total_s <= self.budget_s

    def _first_that_fits(self, indices: range) -> tuple[int, Proposal] | None:
        """The first of some candidates that fits into memory; all that follow it fit, too."""
        grids_by_index: dict[int, Proposal | None] = {}

        def fits(index: int) -> bool:
            grids_by_index[index] = fit_grid(self.machine, self.candidates[index].settings)
            return grids_by_index[index] is not None

        first = indices.start if fits(indices.start) else indices.start + 1 + bisect_left(indices[1:], True, key=fits)
        grid = grids_by_index.get(first)
        return None if grid is None else (first, grid)

    def proposal(self, index: int, grid: Proposal, speed: Speed, threads: int | None) -> TimedProposal:
        """A candidate with its measured speed."""
        needed = self.candidates[index].needed_images(speed.batch_size)
        timetable = self.work.timetable(speed, self.budget_s)
        return TimedProposal(grid, speed, self.work, timetable, needed, self.budget_s, threads)


def _candidates(machine: Machine, survey: Survey) -> Iterator[_Candidate]:
    """Grids from expensive to cheap steps; on the finest one also wider networks."""
    levels, width = list(machine.value(LEVELS)), int(machine.value(WIDTH))
    dims = survey.spatial_dims
    deep = list(grids(survey, len(levels), machine.overrides, machine.factors))
    small: list[dict[str, Any]] = []
    if len(levels) > _FEW_LEVELS and LEVELS not in machine.overrides:
        shallow = grids(survey, _FEW_LEVELS, machine.overrides, machine.factors)
        small = [_as_small(grid, levels, machine) for grid in shallow if max(grid["image_size"]) <= _SMALL[dims]]
        deep = [grid for grid in deep if max(grid["image_size"]) > _SMALL[dims]]
    every = [*deep, *small]
    useful = [grid for grid in every if max(grid["image_size"]) >= _FEWEST_PIXELS[dims]] or every[-1:]
    if WIDTH not in machine.overrides:
        wider = [width * factor for factor in (8, 4, 2) if width * factor <= WIDEST]
        yield from (_Candidate({**useful[0], WIDTH: wide}) for wide in wider)
    yield from (_Candidate({**grid, WIDTH: width}) for grid in useful)


def _as_small(grid: dict[str, Any], levels: list[int], machine: Machine) -> dict[str, Any]:
    """A small grid, with fewer levels and, for volumes, more cells in which z_sem looks."""
    settings = {**grid, LEVELS: levels[:_FEW_LEVELS]}
    if len(grid["image_size"]) == 3 and "z_grid" not in machine.overrides and "z_grid" in machine.config:
        settings["z_grid"] = [max(1, min(_MOST_CELLS, side // _CELL)) for side in grid["image_size"]]
    return settings
