"""``monai-diffae label-server`` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests


class ServerProcess:
    """The server of an app; its output goes to a file beside the app.

    Args:
        app: an app folder.
        studies: a folder, or the URL of a DICOMweb server.
        port: the port.
        options: more arguments of ``label-server``.
    """

    def __init__(self, app: Path, studies: str | Path, port: int, *options: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.output = app.with_suffix(".output")
        command = [sys.executable, "-m", "monai_diffae", "label-server", app, studies, "--port", str(port), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def wait(self, timeout_s: float = 180) -> dict[str, Any]:
        """Return the server's ``/info/`` as soon as it answers."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server has ended: {self.output.read_text()[-2000:]}")
            try:
                answer = requests.get(f"{self.url}/info/", timeout=5)
            except requests.RequestException:
                time.sleep(0.5)
                continue
            answer.raise_for_status()
            return answer.json()
        raise TimeoutError(self.output.read_text()[-2000:])

    def close(self) -> None:
        """End the server as Ctrl-C does."""
        self.process.terminate()
        self.process.wait(30)
