"""Failed cases as values, so that one bad scan does not stop a cohort."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.data.atomic import disk_errors, write_atomic
from monai_diffae.data.cases import Case, Label
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

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
            listed = f"; {self.list_name or 'the list of failures'} has all of them"
            logger.warning("more cases are skipped%s", listed)
        self.num_warnings += 1


def write_failures(path: str | os.PathLike[str], failures: Sequence[Failure]) -> Path:
    """Write failures to a CSV with the columns ``case_id, file, reason``; without failures, delete an older one."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream, lineterminator="\n")
            stream.write(_HEADER + "\n")
            table.writerows([f.case_id, f.file, f.reason] for f in failures)

    path = Path(path)
    if path.exists() and not _is_list_of_failures(path):
        if not failures:
            return path
        raise ConfigError(
            f"{path.name}: already exists and was not written by this package; move it, or choose another out"
        )
    if not failures:
        if path.exists():  # a disk that cannot be written refuses to delete what does not exist
            with disk_errors(path.name):
                path.unlink()
        return path
    return write_atomic(path, write)


def count_failures(path: str | os.PathLike[str]) -> int:
    """The number of cases in a list of failures; 0 if there is no such list."""
    if not _is_list_of_failures(Path(path)):
        return 0
    with open(path, newline="", encoding="utf-8") as stream:
        return sum(1 for _ in csv.reader(stream)) - 1


def count_by_label(ids: Collection[str], cases: Sequence[Case]) -> str:
    """How many cases of each class are among some ids, in brackets; empty if there are no ids or no classes."""
    counted_ids = set(ids)
    if counted_ids.isdisjoint(case.id for case in cases):
        return ""
    texts = []
    for name in dict.fromkeys(name for case in cases for name in case.labels):
        totals: Counter[Label] = Counter(case.labels.get(name) for case in cases)
        counts: Counter[Label] = Counter(case.labels.get(name) for case in cases if case.id in counted_ids)
        are_classes = len(totals) <= _MOST_CLASSES and not any(isinstance(value, float) for value in totals)
        if are_classes and 2 * totals[None] <= len(cases):
            values = sorted(totals, key=str)
            texts.append(f"{name}: " + ", ".join(f"{counts[v]} of {totals[v]} {v}" for v in values))
    return f" ({'; '.join(texts[:_MOST_LABELS])})" if texts else ""


def _is_list_of_failures(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[: len(_HEADER)] == _HEADER.encode()
