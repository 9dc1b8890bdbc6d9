"""How the threads of the processors wait for each other, which has to be decided before torch is loaded."""

from __future__ import annotations

import logging
import os

logger = logging.getLogger(__name__)

_BUSY_PERCENT = 20.0  # of the processors, used by other programs
_LOOK_S = 0.2
_GIVEN = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def choose_waiting() -> None:
    """Let threads sleep while they wait, if other programs use the processors.

    After each operation, the threads of OpenMP wait for the slowest of them. By default they keep their processors busy
    meanwhile, which is fast if they have them to themselves. If another program holds one of them back, the others take
    away what it needs to get on. Results are the same either way. Nothing is changed if the user has set a variable of
    OpenMP.

    Example:
        >>> import os
        >>> os.environ["OMP_NUM_THREADS"] = "1"
        >>> choose_waiting()
        >>> "OMP_WAIT_POLICY" in os.environ
        False
    """
    if any(name in os.environ for name in _GIVEN):
        return
    import psutil

    if psutil.cpu_percent(interval=_LOOK_S) > _BUSY_PERCENT:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        logger.debug("other programs use the processors, so threads sleep while they wait for each other")
