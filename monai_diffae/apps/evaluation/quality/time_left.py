"""The time that an evaluation will take, predicted from its first batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from monai_diffae.errors import counted

logger = logging.getLogger(__name__)


@dataclass
class TimeLeft:
    """Counts network evaluations, moves a progress bar, and logs one prediction of the time.

    Attributes:
        total: image evaluations of the whole run: evaluations of the network times images.
        advance: moves a progress bar by one.
    """

    total: int
    advance: Callable[[], None]
    _done: int = 0
    _start: float = field(default_factory=time.monotonic)

    def add(self, count: int, *, measured: bool) -> None:
        """Count evaluations, which were measured now or by an earlier run that was interrupted."""
        self._done += count
        for _ in range(count):
            self.advance()
        if not measured:
            self.total, self._done = self.total - count, self._done - count
        elif self._done == count and count < self.total:
            seconds = (time.monotonic() - self._start) * (self.total - count) / count
            logger.info(
                "%s network evaluations of single images: about %s; fewer steps, draws or cases (limit) take less",
                f"{self.total:,}", _duration(seconds),
            )  # fmt: skip


def _duration(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> _duration(42), _duration(200), _duration(9000)
        ('1 minute', '3 minutes', '2.5 hours')
    """
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return counted(max(1, round(seconds / 60)), "minute")
