"""One thread for the model: requests wait in a queue, and a newer one replaces the older ones of its lane."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from monai_diffae.serving.answers import ConflictError

T = TypeVar("T")
Check = Callable[[], None]
"""Raises :class:`SupersededError` if a newer job has replaced the one that runs."""


class SupersededError(ConflictError):
    """A newer job of the same lane replaced this one."""


@dataclass(frozen=True)
class _Job(Generic[T]):
    lane: str
    number: int
    run: Callable[[Check], T]
    result: Future[T]


class ModelWorker:
    """Runs one job after the other in a thread of its own.

    A lane is whatever needs its newest result only, such as the edited image of one browser window. A waiting job is
    dropped when a newer one of its lane arrives; a running one is told by its ``check``.

    Example:
        >>> worker = ModelWorker()
        >>> worker.submit("image", lambda check: 6 * 7).result()
        42
        >>> worker.close()
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._newest: dict[str, int] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, lane: str | None, run: Callable[[Check], T]) -> Future[T]:
        """Queue a job, which may call its argument between steps; it replaces older jobs of its lane, if it has one.

        A job that was replaced has a :class:`SupersededError`.
        """
        result: Future[T] = Future()
        with self._lock:
            self._count += 1
            lane = f"#{self._count}" if lane is None else lane
            self._newest[lane] = self._count
            self._jobs.put(_Job(lane, self._count, run, result))
        return result

    def close(self) -> None:
        """End the thread after the job that runs; waiting jobs are superseded."""
        with self._lock:
            self._newest.clear()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._run_one(job)

    def _run_one(self, job: _Job[Any]) -> None:
        def check() -> None:
            if self._newest.get(job.lane) != job.number:
                raise SupersededError(
                    "request: a newer one of this window replaced it, or the server ends; send it again"
                )

        try:
            check()
            value = job.run(check)
        except BaseException as error:
            job.result.set_exception(error)
        else:
            job.result.set_result(value)
        with self._lock:
            if self._newest.get(job.lane) == job.number:
                del self._newest[job.lane]
