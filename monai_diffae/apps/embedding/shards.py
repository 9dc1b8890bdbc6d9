"""A cohort's codes in parts on the disk: what a killed run had done, and what several processes do side by side."""

from __future__ import annotations

import glob
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.failures import Failure
from monai_diffae.errors import ConfigError, MachineError

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.2
_SILENT_S = 60.0  # a part is some seconds of work
_REPEAT_S = 600.0
_DIGITS = 12
_GIVEN_UP_S = 86400.0


@dataclass(frozen=True)
class Process:
    """One of those that share the work, as ``torchrun`` numbers them.

    Attributes:
        rank: which one.
        world_size: of how many.
        local_rank: which one on its machine.
        local_world_size: of how many on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

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
    return Process(int(rank), int(world_size), int(local_rank), _local_world_size())


def _local_world_size() -> int:
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")  # other launchers leave it out
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"LOCAL_WORLD_SIZE is {text!r}; start processes with torchrun")
    return int(text)


def parts_folder(table: Path, made_from: str) -> Path:
    """Where the parts of a table lie: beside it, hidden, by the checksum of what it is made from."""
    return table.parent / f".{table.stem}-{made_from[:_DIGITS]}"


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

    def failed(self, part: int) -> list[int]:
        """The positions of those of its cases that could not be used.

        Raises:
            MachineError: it cannot be read.
        """
        (used,) = self._load(part, "positions")
        return sorted({*self.cases_of(part)} - {*used.tolist()})

    def add(self, part: int, positions: Sequence[int], rows: NDArray[np.float32], failures: Sequence[Failure]) -> None:
        """Keep what became of a part's cases that had all failed and were tried again, beside its other cases."""
        used, others = self._load(part, "positions", "rows")
        both = [each for each in (others, rows) if len(each)]
        of_both = np.array([*used, *positions], np.int64)
        order = np.argsort(of_both, kind="stable")
        self.write(part, of_both[order].tolist(), np.concatenate(both)[order] if both else rows, failures)

    def read(self) -> tuple[list[int], NDArray[np.float32], list[Failure]]:
        """All of them together, in the order of the cohort.

        Raises:
            MachineError: one cannot be read.
        """
        positions: list[int] = []
        rows: list[NDArray[np.float32]] = []
        failures: list[Failure] = []
        for part in range(len(self)):
            used, codes, failed = self._load(part, "positions", "rows", "failures")
            positions += used.tolist()
            failures += [Failure(*map(str, row)) for row in failed]
            if len(codes):
                rows.append(codes)
        return positions, np.concatenate(rows) if rows else np.empty((0, 0), np.float32), failures

    def wait(self, world_size: int, patience_s: float) -> None:
        """Of the first process, until the others have written theirs; from time to time, say which are waited for.

        Args:
            world_size: how many processes there are, each of which makes every ``world_size``-th part.
            patience_s: how long to wait for the next part.

        Raises:
            MachineError: no part came for ``patience_s`` seconds, or parts of the first process itself are gone.
        """
        left, since, say_at = self.missing(), time.monotonic(), _SILENT_S
        while left:
            gone = [part for part in left if part % world_size == 0]
            if gone:
                raise MachineError(
                    f"{self.folder.name}: another run of this table has removed {len(gone)} of {len(self)} parts; run "
                    "the command again"
                )
            time.sleep(_WAIT_SECONDS)
            now, waited = self.missing(), time.monotonic() - since
            ranks = ", ".join(map(str, sorted({part % world_size for part in now})))
            if len(now) != len(left):
                left, since, say_at = now, time.monotonic(), _SILENT_S
            elif waited > patience_s:
                raise MachineError(
                    f"{len(now)} of {len(self)} parts did not come from rank {ranks}; run it again, it goes on"
                )
            elif waited > say_at:
                say_at += _REPEAT_S
                logger.warning(
                    "waiting for %d of %d parts of rank %s; if it has ended, stop this one too and run all again: it "
                    "goes on", len(now), len(self), ranks,
                )  # fmt: skip

    def remove(self) -> None:
        """Delete the folder, and those of the same table that other settings left and nothing was added to for a day.

        Others may be of runs that go on.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        of_table = self.folder.name[:-_DIGITS]
        for folder in self.folder.parent.glob(glob.escape(of_table) + "[0-9a-f]" * _DIGITS):
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _GIVEN_UP_S:
                    shutil.rmtree(folder)

    def _load(self, part: int, *names: str) -> list[NDArray[Any]]:
        try:
            with np.load(self._path(part), allow_pickle=False) as content:
                return [content[name] for name in names]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise MachineError(
                f"{self.folder.name}/{self._path(part).name}: cannot be read; delete it and run again"
            ) from error

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.npz"
