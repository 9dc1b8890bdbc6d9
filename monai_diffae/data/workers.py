"""Worker processes that read scans: they outlive signals to their group, and their death is one clear error."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from monai_diffae.errors import MachineError


def leave_signals_to_parent(_worker: int = 0) -> None:
    """Make a worker process ignore Ctrl-C, and SIGTERM unless its parent sends it: a ``worker_init_fn``.

    Slurm, systemd and containers signal all processes of a job. A worker that ended then would take the training down
    before it has saved its last steps; the parent ends its workers itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS and Windows do not tell who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise the death of a worker process as an error of the machine.

    torch raises a RuntimeError in the main thread, wherever that is at the time.

    Example:
        >>> with worker_errors():
        ...     raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.MachineError: a worker process that reads scans was killed, usually because memory ran ...
    """
    try:
        yield
    except RuntimeError as error:
        if dead := dead_worker(error):
            raise dead from error
        raise


def dead_worker(error: BaseException) -> MachineError | None:
    """The error of the machine, if torch says that a worker process died; else None."""
    if not (isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")):
        return None
    return MachineError(
        "a worker process that reads scans was killed, usually because memory ran out; use fewer workers, then the "
        "same command resumes"
    )
