"""How much of the processors other programs use."""

from __future__ import annotations

from contextlib import suppress

import psutil


class OtherPrograms:
    """What other programs use of the processors, as a share of all of them since the last look.

    Example:
        >>> load = OtherPrograms()
        >>> 0 <= load.share() <= 1
        True
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._all, self._own, self._time = 0.0, 0.0, 0.0
        self.share()

    def share(self) -> float:
        """The share, in [0, 1]."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        everything = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        own = sum(map(_seconds, self._family()))
        busy = everything - idle
        passed = everything - self._time
        others = (busy - self._all) - (own - self._own)
        self._all, self._own, self._time = busy, own, everything
        return min(max(others / passed, 0.0), 1.0) if passed > 0 else 0.0

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.Error):  # some systems do not show children
            return [self._process, *self._process.children(recursive=True)]
        return [self._process]


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.Error):  # it has ended
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0
