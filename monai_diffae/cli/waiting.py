"""How the threads of the processors wait for each other while other programs use them, too."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_diffae.cli.other_programs import OtherPrograms

logger = logging.getLogger(__name__)

_BUSY, _QUIET = 0.2, 0.1  # of the processors, used by other programs: from here on, and below this again
_LOOK_S = 2.0
_GIVEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@contextmanager
def considerate_waiting() -> Iterator[None]:
    """Let the threads of the processors sleep while they wait, as long as other programs use the processors.

    After each operation, the threads of OpenMP wait for the slowest of them. By default, they keep their processors
    busy meanwhile, which is fast if they have them to themselves. If another program holds one of them back, the others
    take away what it needs to get on, and everything can take 20 times as long. A thread of this function looks every
    two seconds what other programs use. Results are the same to the bit either way. Nothing is changed if the user has
    set a variable of OpenMP for it.

    Example:
        >>> with considerate_waiting():
        ...     pass  # train, encode or decode
    """
    if any(name in os.environ for name in _GIVEN):
        yield
        return
    from monai_diffae.cli.other_programs import OtherPrograms  # MONAI's searches fail while a thread imports

    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(OtherPrograms(), ended), daemon=True, name="considerate-waiting")
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()  # Python aborts if it ends while a thread is within torch


def _watch(load: OtherPrograms, ended: threading.Event) -> None:
    crowd = ThreadCrowd()
    while not ended.wait(_LOOK_S):
        share = load.share()
        if share > _BUSY and not crowd.is_there and "torch" in sys.modules:
            logger.debug("other programs use the processors, so threads sleep while they wait for each other")
            crowd.gather()
        elif share < _QUIET and crowd.is_there:
            crowd.leave()
    crowd.leave()


class ThreadCrowd:
    """More threads of OpenMP than processors, which is what makes GNU's library let waiting threads sleep at once.

    They belong to a thread that does nothing. With other libraries than GNU's, and with a single thread, nothing
    changes.
    """

    def __init__(self) -> None:
        self._leave = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_there(self) -> bool:
        """Whether the threads exist."""
        return self._thread is not None

    def gather(self) -> None:
        """Start the threads, and wait until they are there."""
        gathered, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=_stay, args=(gathered, self._leave), daemon=True, name="thread-crowd")
        self._thread.start()
        gathered.wait()

    def leave(self) -> None:
        """End the threads."""
        if self._thread is not None:
            self._leave.set()
            self._thread.join()
            self._thread = None


def _stay(gathered: threading.Event, leave: threading.Event) -> None:
    try:
        import torch

        torch.ones(1 << 20).mul_(2.0)  # large enough for as many threads as torch uses
    finally:
        gathered.set()
    leave.wait()
