"""Requests to stop a training: signals to the process, or an event of the program that runs the training."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class TrainingStopped(SystemExit):
    """Ends a training whose program asked it to stop, after its checkpoint was saved."""


class StopRequests:
    """Requests to stop a training. They are noted, and fulfilled at a step at which a checkpoint can be saved.

    SIGTERM and Ctrl-C are noted if the training runs in the main thread; a second signal ends the process at once.

    Attributes:
        event: set by the program that runs the training, from any thread; None: there is none.

    Example:
        >>> requests = StopRequests()
        >>> requests.event = threading.Event()
        >>> requests.are_pending
        False
        >>> requests.event.set()
        >>> requests.are_pending
        True
    """

    def __init__(self) -> None:
        self.event: threading.Event | None = None
        self._signal: int | None = None
        self._handlers_before: dict[int, Any] = {}

    @property
    def are_pending(self) -> bool:
        """Whether the training should stop."""
        return self._signal is not None or (self.event is not None and self.event.is_set())

    def fulfil(self) -> None:
        """End the training if it should stop."""
        if self._signal is not None:
            raise SystemExit(128 + self._signal)
        if self.are_pending:
            raise TrainingStopped

    def listen(self) -> None:
        """Note signals from now on; does nothing outside the main thread, which alone receives them."""
        if threading.current_thread() is not threading.main_thread():
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers_before[number] = signal.signal(number, note)

    def stop_listening(self) -> None:
        """Leave signals to the handlers from before."""
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before.clear()
