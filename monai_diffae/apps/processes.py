"""The processes that share the work of a command, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from monai_diffae.errors import ConfigError


@dataclass(frozen=True)
class Process:
    """One of the processes that share the work, as ``torchrun`` numbers them among all and on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def device(self) -> str | None:
        """The GPU of this process, or None if it is the only process or there is no GPU."""
        if self.world_size == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"


def this_process() -> Process:
    """Read this process's numbers from the environment that ``torchrun`` sets; without it, there is one process."""
    rank, world_size, local_rank = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not (rank or world_size):
        return Process()
    if not all(text.isdecimal() for text in (rank, world_size, local_rank)) or int(rank) >= int(world_size):
        raise ConfigError(
            f"RANK is {rank!r}, WORLD_SIZE {world_size!r} and LOCAL_RANK {local_rank!r}; start processes with torchrun"
        )
    return Process(int(rank), int(world_size), int(local_rank), _local_world_size())


def _local_world_size() -> int:
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")  # other launchers do not set it
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"LOCAL_WORLD_SIZE is {text!r}; start processes with torchrun")
    return int(text)
