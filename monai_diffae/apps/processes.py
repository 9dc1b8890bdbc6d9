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
    defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}  # other launchers do not set all
    return Process(*(int(os.environ.get(name, default)) for name, default in defaults.items()))
