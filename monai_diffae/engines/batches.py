"""The images and the random numbers of each step, as functions of the step: a resumed run sees the same."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset as MonaiDataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from monai_diffae.data.streamed import leave_signals_to_parent
from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.diffusion.noise import seed_of
from monai_diffae.engines.precision import DeviceSettings


@dataclass(frozen=True)
class StepDraws:
    """Draws the random numbers of one process's images: a function of seed, step and their place in the global batch.

    The global batch consists of the images of all processes in a step. Every process draws for all of them and keeps
    its own rows: one call, which is much faster than one call per image. A CPU and a GPU draw different numbers.

    Example:
        >>> alone, second = StepDraws(0, 7, first=0, count=4, total=4), StepDraws(0, 7, first=2, count=2, total=4)
        >>> bool((alone.noise((1, 8, 8), "cpu")[2:] == second.noise((1, 8, 8), "cpu")).all())
        True
    """

    seed: int  #: random seed of the training
    step: int  #: number of the step, from 0
    first: int  #: place of this process's first image in the global batch
    count: int  #: number of its images
    total: int  #: number of images in the global batch

    def noise(self, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """Standard normal noise (count, *shape), float32."""
        generator = torch.Generator(device).manual_seed(seed_of(self.seed, self.step, "noise"))
        return self._own_rows(torch.randn((self.total, *shape), generator=generator, device=device))

    def timesteps(self, schedule: DiffusionSchedule) -> Tensor:
        """Timesteps (count,), on the CPU, sampled as the schedule's ``timestep_sampling`` says."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.step, "timesteps"))
        return self._own_rows(schedule.sample_timesteps(self.total, generator))

    def _own_rows(self, rows: Tensor) -> Tensor:
        return rows[self.first : self.first + self.count]


@dataclass(eq=False)
class StepSeeding:
    """Ignite handler: before each iteration, seed torch and numpy with (seed, rank, iteration).

    Dropout, and whatever else draws from these generators, is then the same in a resumed run. Noise and timesteps have
    numbers of their own: :class:`StepDraws`.
    """

    seed: int
    rank: int = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch (CPU and GPU) and numpy for the iteration that begins."""
        seed = seed_of(self.seed, self.rank, engine.state.iteration)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - MONAI and its users draw from the global generator


class StepBatchSampler(Sampler[list[tuple[int, int]]]):
    """An endless stream of batches; batch k is a function of (seed, k), whatever this process did before.

    Each epoch is a permutation of the images, cut into batches of ``batch_size`` per rank. A last, shorter batch is
    omitted; its images appear in other epochs. Items are (epoch, index), so that augmentation can be seeded with both.

    Args:
        num_images: images in the data set; ``batch_size`` is reduced if they are fewer than a batch.
        batch_size: images per batch, on each rank.
        seed: random seed of the permutations.
        rank: number of this process, in [0, world_size).
        world_size: number of processes that share each step.

    Example:
        >>> sampler = StepBatchSampler(num_images=5, batch_size=2, seed=0)
        >>> len(sampler)
        2
        >>> batches = iter(sampler)
        >>> first, second, third = next(batches), next(batches), next(batches)
        >>> sampler.start = 2
        >>> next(iter(sampler)) == third
        True
    """

    def __init__(self, num_images: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.num_images, self.seed, self.rank, self.world_size = num_images, seed, rank, world_size
        self.batch_size = max(1, min(batch_size, num_images // world_size))
        self.start = 0
        self.with_epoch = True  # False: items are indices alone, for MONAI's datasets

    def __len__(self) -> int:
        return max(1, self.num_images // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        ordered_epoch, order = -1, []
        for step in count(self.start):
            epoch, batch = divmod(step, len(self))
            if epoch != ordered_epoch:
                generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
                ordered_epoch, order = epoch, torch.randperm(self.num_images, generator=generator).tolist()
            first = (batch * self.world_size + self.rank) * self.batch_size
            indices = [order[i % self.num_images] for i in range(first, first + self.batch_size)]
            yield [(epoch, index) for index in indices] if self.with_epoch else indices

    def draws(self, step: int) -> StepDraws:
        """The random numbers for this process's images in a step; steps count from 0."""
        first, total = self.rank * self.batch_size, self.world_size * self.batch_size
        return StepDraws(self.seed, step, first, self.batch_size, total)


def training_loader(
    dataset: Dataset[Any],
    batch_size: int,
    seed: int = 0,
    num_workers: int | None = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> DataLoader[Any]:
    """A loader with a :class:`StepBatchSampler`; its length is the number of steps per epoch.

    Workers persist over epochs. They hold arrays and tensors of the CPU, and never touch a GPU.
    """
    sampler = StepBatchSampler(len(dataset), batch_size, seed, rank, world_size)  # type: ignore[arg-type]
    sampler.with_epoch = not isinstance(dataset, MonaiDataset)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers or 0,
        worker_init_fn=leave_signals_to_parent,
        persistent_workers=bool(num_workers),
        pin_memory=DeviceSettings.of(device).pin_memory,
    )


def validation_loader(dataset: Dataset[Any], batch_size: int, device: torch.device | str = "cpu") -> DataLoader[Any]:
    """A loader over all images in a fixed random order, so that consecutive ones are rarely slices of one volume."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()  # type: ignore[arg-type]
    pin_memory = DeviceSettings.of(device).pin_memory
    return DataLoader(dataset, batch_size=batch_size, sampler=order, pin_memory=pin_memory)
