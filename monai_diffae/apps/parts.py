"""A cohort's codes in parts on the disk: what a killed run had done, and what several processes do side by side."""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.failures import Failure
from monai_diffae.errors import ConfigError, MachineError

_WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class Process:
    """One of those that share the work, as ``torchrun`` numbers them.

    Attributes:
        rank: which one.
        world_size: of how many.
        local_rank: which one on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def device(self) -> str | None:
        """A GPU for each process of a machine; None: no choice of its own."""
        if self.world_size == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"


def this_process() -> Process:
    """By the environment that ``torchrun`` sets; alone without it.

    Raises:
        ConfigError: RANK and WORLD_SIZE are no such numbers.
    """
    rank, world_size, local_rank = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not (rank or world_size):
        return Process()
    if not all(text.isdecimal() for text in (rank, world_size, local_rank)) or int(rank) >= int(world_size):
        raise ConfigError(
            f"RANK is {rank!r}, WORLD_SIZE {world_size!r} and LOCAL_RANK {local_rank!r}; start processes with torchrun"
        )
    return Process(int(rank), int(world_size), int(local_rank))


class Parts:
    """The parts of a cohort of ``num_cases``, each of ``size`` cases, in a folder that all processes see.

    Which cases a part holds depends on nothing else, so that a run can go on with another number of processes.

    Args:
        folder: for the parts of this one result.
        num_cases: in the cohort.
        size: cases a part; the last one may have fewer.
    """

    def __init__(self, folder: Path, num_cases: int, size: int) -> None:
        self.folder, self.num_cases, self.size = folder, num_cases, size

    def __len__(self) -> int:
        return -(-self.num_cases // self.size)

    def cases_of(self, part: int) -> range:
        """The positions of its cases in the cohort."""
        return range(part * self.size, min((part + 1) * self.size, self.num_cases))

    def missing(self) -> list[int]:
        """Those that are not there yet."""
        return [part for part in range(len(self)) if not self._path(part).is_file()]

    def write(
        self, part: int, positions: Sequence[int], rows: NDArray[np.float32], failures: Sequence[Failure]
    ) -> None:
        """Keep a part: numbers (N, D) of the cases at ``positions`` (N), each once or several times; and the others."""
        table = np.array([astuple(failure) for failure in failures], dtype=np.str_).reshape(len(failures), 3)

        def save(path: Path) -> None:
            with open(path, "wb") as stream:
                np.savez(stream, positions=np.array(positions, np.int64), rows=rows, failures=table)

        write_atomic(self._path(part), save)

    def read(self) -> tuple[list[int], NDArray[np.float32], list[Failure]]:
        """All of them together, in the order of the cohort.

        Raises:
            MachineError: one cannot be read.
        """
        positions: list[int] = []
        rows: list[NDArray[np.float32]] = []
        failures: list[Failure] = []
        for part in range(len(self)):
            try:
                with np.load(self._path(part), allow_pickle=False) as content:
                    positions += content["positions"].tolist()
                    failures += [Failure(*map(str, row)) for row in content["failures"]]
                    if len(content["rows"]):
                        rows.append(content["rows"])
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise MachineError(
                    f"{self.folder.name}/{self._path(part).name}: cannot be read; delete it and run again"
                ) from error
        return positions, np.concatenate(rows) if rows else np.empty((0, 0), np.float32), failures

    def wait(self, patience_s: float) -> None:
        """Until the other processes have written theirs.

        Raises:
            MachineError: no part came for ``patience_s`` seconds.
        """
        left, since = self.missing(), time.monotonic()
        while left:
            time.sleep(_WAIT_SECONDS)
            now = self.missing()
            if len(now) < len(left):
                left, since = now, time.monotonic()
            elif time.monotonic() - since > patience_s:
                raise MachineError(
                    f"{len(now)} of {len(self)} parts did not come from the other processes; run it again, it goes on"
                )

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.npz"
