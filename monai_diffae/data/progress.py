"""What long work reports: its progress, on a terminal or in the log, and the cases that failed."""

import contextlib
import csv
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from monai_diffae.data.atomic import disk_errors, write_atomic
from monai_diffae.data.cases import Case, Label, label_names
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.policies import PathLike

logger = logging.getLogger(__name__)

T = TypeVar("T")


def track(items: Sequence[T], text: str) -> Iterator[T]:
    """Yield the items, with :func:`progress`."""
    with progress(len(items), text) as advance:
        for item in items:
            yield item
            advance()


_LOG_SECONDS = 10.0


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
    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.start = self.last = time.monotonic()

    def __call__(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last >= _LOG_SECONDS:
            each_s = (now - self.start) / self.done
            speed = f"{each_s:.3g} s each" if each_s > 1 else f"{1 / each_s:.3g} per second"
            remaining_s = int((self.total - self.done) * each_s)
            logger.info(
                "%d of %d, %s, %d:%02d:%02d left",
                self.done,
                self.total,
                speed,
                remaining_s // 3600,
                remaining_s // 60 % 60,
                remaining_s % 60,
            )
            self.last = now


# -- failed cases ------------------------------------------------------------------------------------------------------

_HEADER = "case_id,file,reason"
_MOST_WARNINGS = 5
_MOST_CLASSES, _MOST_LABELS = 12, 3  # in messages that count by label


@dataclass(frozen=True)
class Failure:
    """One case that cannot be used."""

    case_id: str  # the case's id
    file: str  # the name of its (first) file, without folders, because these often contain patients' names
    reason: str  # one line that says what is wrong and what to do


class SkippedCases:
    """Logs a warning for each of the first 5 cases that are skipped."""

    def __init__(self, list_name: str | None = None) -> None:
        self.num_warnings, self.list_name = 0, list_name
        self._last: tuple[str, str] | None = None

    def log(self, failure: Failure, volume: str | None = None) -> None:
        """Log that a case is skipped."""
        this = (failure.case_id if volume is None else volume, failure.reason)
        is_told, self._last = this == self._last, this
        level = logging.DEBUG if is_told or self.num_warnings >= _MOST_WARNINGS else logging.WARNING
        logger.log(level, "case %s skipped: %s", failure.case_id, failure.reason)
        if is_told:
            return
        if self.num_warnings == _MOST_WARNINGS:
            logger.warning("more cases are skipped; %s has all of them", self.list_name or "the list of failures")
        self.num_warnings += 1


def write_failures(path: PathLike, failures: Sequence[Failure]) -> Path:
    """Write failures to a CSV with the columns ``case_id, file, reason``; without failures, delete an older one."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as stream:
            stream.write(_HEADER + "\n")
            csv.writer(stream, lineterminator="\n").writerows([f.case_id, f.file, f.reason] for f in failures)

    path = Path(path)
    if failures and path.exists() and not _is_list_of_failures(path):
        raise ConfigError(f"{path.name}: already exists and was not written by this package; choose another out")
    if failures:
        return write_atomic(path, write)
    if _is_list_of_failures(path):
        with disk_errors(path.name):
            path.unlink()
    return path


def count_failures(path: PathLike) -> int:
    """The number of cases in a list of failures; 0 if there is no such list."""
    if not _is_list_of_failures(Path(path)):
        return 0
    with open(path, newline="", encoding="utf-8") as stream:
        return sum(1 for _ in csv.reader(stream)) - 1


def check_any_usable(num_usable: int, failures: Sequence[Failure], noun: str = "cases") -> None:
    """Raise an error if all cases failed; ``noun`` is what a case is, in the plural."""
    if not num_usable:
        first = failures[0]
        raise CohortError(f"all {len(failures)} {noun} failed, the first is '{first.case_id}': {first.reason}")


def count_by_label(ids: Collection[str], cases: Sequence[Case]) -> str:
    """How many cases of each class are among some ids, in brackets; empty if there are no ids or no classes."""
    counted_ids = set(ids)
    members = [case for case in cases if case.id in counted_ids]
    texts = []
    for name in label_names(cases) if members else ():
        totals: Counter[Label] = Counter(case.labels.get(name) for case in cases)
        counts: Counter[Label] = Counter(case.labels.get(name) for case in members)
        are_classes = len(totals) <= _MOST_CLASSES and not any(isinstance(value, float) for value in totals)
        if are_classes and 2 * totals[None] <= len(cases):
            values = sorted(totals, key=str)
            texts.append(f"{name}: " + ", ".join(f"{counts[v]} of {totals[v]} {v}" for v in values))
    return f" ({'; '.join(texts[:_MOST_LABELS])})" if texts else ""


def _is_list_of_failures(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[: len(_HEADER)] == _HEADER.encode()
