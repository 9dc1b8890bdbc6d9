"""Progress of long work: a bar on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from monai_diffae.errors import counted

logger = logging.getLogger(__name__)


T = TypeVar("T")


def track(items: Sequence[T], text: str) -> Iterator[T]:
    """Yield the items; show a bar on a terminal (if INFO is logged), else log a line at the start and at intervals."""
    if not logger.isEnabledFor(logging.INFO) or not sys.stderr.isatty() or len(items) < 2:
        logger.info("%s", text)
        report = _LoggedProgress(len(items), "part")  # items may be batches
        for item in items:
            yield item
            report()
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=text, console=Console(stderr=True), transient=True)


_LOG_SECONDS = 30.0


@contextlib.contextmanager
def progress(total: int, text: str) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each of ``total`` steps; it moves a bar on a terminal, or logs a line at times."""
    if not logger.isEnabledFor(logging.INFO) or not sys.stderr.isatty() or total < 2:
        if total > 1:
            logger.info("%s", text)
        yield _LoggedProgress(total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)


class _LoggedProgress:
    def __init__(self, total: int, unit: str = "") -> None:
        self.total, self.done, self.all = total, 0, counted(total, unit) if unit else str(total)
        self.start = self.last = time.monotonic()

    def __call__(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last >= _LOG_SECONDS:
            each_s = (now - self.start) / self.done
            speed = f"{each_s:.3g} s each" if each_s > 1 else f"{1 / each_s:.3g} per second"
            remaining_s = int((self.total - self.done) * each_s)
            logger.info(
                "%d of %s, %s, %d:%02d:%02d left", self.done, self.all, speed,
                remaining_s // 3600, remaining_s // 60 % 60, remaining_s % 60,
            )  # fmt: skip
            self.last = now
