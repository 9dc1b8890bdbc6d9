"""The processes that share the work of a command: those of ``torchrun``, or the jobs of a Slurm array."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from monai_diffae.errors import ConfigError
from monai_diffae.lazy import torch


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


def this_process(part: str | None = None) -> Process:
    """This process by ``part``, such as ``3/16``, or by the environment that ``torchrun`` sets; else there is one."""
    if part is not None:
        numbers = re.fullmatch(r"(\d+)/(\d+)", part)
        if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise ConfigError(f"part: {part!r} is not a part such as 3/16, from 1/16 to 16/16")
        return Process(int(numbers[1]) - 1, int(numbers[2]))
    if not os.environ.get("RANK") and not os.environ.get("WORLD_SIZE"):
        return Process()
    defaults = {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # some launchers set only two
    rank, size, local_rank, local_size = texts = [os.environ.get(name) or text for name, text in defaults.items()]
    if not all(map(str.isdecimal, texts)) or int(rank) >= int(size) or int(local_size) == 0:
        raise ConfigError(f"{', '.join(defaults)} are {', '.join(map(repr, texts))}; use torchrun, or unset all")
    return Process(int(rank), int(size), int(local_rank), int(local_size))
