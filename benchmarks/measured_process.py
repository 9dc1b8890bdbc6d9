"""Time and memory of a program that runs in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True)
class Usage:
    """What a program took.

    Attributes:
        seconds: from start to end.
        processor_seconds: of all its threads and processes.
        peak_gib: that it, or the largest of its processes, had resident at most.
    """

    seconds: float
    processor_seconds: float
    peak_gib: float


def run_python(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, output: IO[str] | None = None
) -> Usage:
    """Run Python with these arguments to the end; by default, it prints to the terminal.

    Raises:
        SystemExit: its exit code is not 0.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=output, stderr=output)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        where = "" if output is None else f"; see {output.name}"
        raise SystemExit(f"{' '.join(arguments[:4])} ...: exit code {process.returncode}{where}")
    return Usage(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024**2)
