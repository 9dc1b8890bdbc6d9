"""Seeds are a function of (seed, rank, step, index), not a state: so a resumed run draws what the whole run drew."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from ignite.engine import Engine, Events


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of ``parts``.

    Example:
        >>> seed_of(0, 0, 17) == seed_of(0, 0, 17), seed_of(0, 0, 17) == seed_of(0, 17, 0)
        (True, False)
    """
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def image_noise(shape: tuple[int, ...], seed: int, indices: list[int]) -> torch.Tensor:
    """Standard normal noise (len(indices), *shape), each row a function of (seed, index) alone.

    So an image gets the same noise whatever the batch it comes in.

    Example:
        >>> bool((image_noise((1, 4), 0, [3, 5])[1] == image_noise((1, 4), 0, [5])[0]).all())
        True
    """
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed_of(seed, "noise", i))) for i in indices]
    return torch.stack(rows)


class StepSeeding:
    """Ignite handler: before each iteration, seed torch and numpy with (seed, rank, iteration).

    Timesteps, noise and dropout of an iteration are then the same in a resumed run as in the whole one.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch (CPU and GPU) and numpy for the iteration that begins."""
        seed = seed_of(self.seed, self.rank, engine.state.iteration)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - MONAI and its users draw from the global generator
