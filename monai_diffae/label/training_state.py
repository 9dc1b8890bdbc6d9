"""The state of an app's training: one at a time, and how far it is, across the server and its jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai_diffae.data.atomic import ProcessLock, write_json
from monai_diffae.errors import BusyError

IS_RUNNING = "train: a training is running; wait for it, or stop it with DELETE /train/"
"""Why a second training is refused."""


class TrainingState:
    """The lock and the status file of an app's training.

    Args:
        folder: the folder of the trainings.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._status_file = folder, folder / "status.json"

    def write(self, status: dict[str, Any]) -> None:
        """Write how far the training is, or how it ended."""
        write_json(self._status_file, status)

    def read(self) -> dict[str, Any]:
        """What :meth:`write` wrote last; ``total_time`` is ``stopped`` if that training has ended before its end."""
        try:
            status: dict[str, Any] = json.loads(self._status_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if "total_time" not in status and not self.is_running():
            return {**status, "total_time": "stopped"}  # viewers show a bar as long as there is none
        return status

    def alone(self) -> ProcessLock:
        """The lock of the training; taking it raises BusyError if another training is running."""
        return ProcessLock(self._folder / ".lock", IS_RUNNING, timeout_s=0)

    def is_running(self) -> bool:
        """Whether a training holds the lock."""
        try:
            with self.alone():
                return False
        except BusyError:
            return True
