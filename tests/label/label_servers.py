"""Servers for the tests of the MONAI Label app: in this process, and as a process of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import requests
from forked_program import wait_until
from label_scans import Studies


@dataclass(frozen=True)
class Server:
    """A server in this process, with a client, the app behind it, and its scans."""

    client: Any
    app: Any
    studies: Studies

    def infer(self, model, image, output="json", /, **params):
        """The response to a request for inference."""
        return self.client.post(f"/infer/{model}?image={image}&output={output}", data={"params": json.dumps(params)})

    def upload(self, model, source, name=None, **query):
        """The response to a request for inference of a file that is sent with it."""
        with open(source, "rb") as stream:
            return self.client.post(f"/infer/{model}", params=query, files={"file": (name or source.name, stream)})

    def score(self):
        """Encode all scans; returns the figures of the scoring."""
        response = self.client.post("/scoring/diffae_embed?run_sync=true")
        assert response.status_code == 200, response.text
        return response.json()


@contextmanager
def same_settings():
    """Afterwards, the environment and MONAI Label's settings are as before."""
    from monailabel.config import settings

    environment, values = dict(os.environ), settings.model_dump()
    try:
        yield settings
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for name, value in values.items():
            setattr(settings, name, value)


@contextmanager
def server_in_this_process(folder, bundle, studies):
    """A server, whose app is in a new folder. MONAI Label finds an app by the settings, so the last server is used."""
    from fastapi.testclient import TestClient
    from monailabel.interfaces.utils.app import app_instance, apps

    from monai_diffae import label_app
    from monai_diffae.label.label_server import apply_settings, settings_for
    from monai_diffae.label.server import build_app

    label_app(folder, bundle=bundle)
    quiet = {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false", "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false"}
    with same_settings():
        apply_settings({**settings_for(folder, str(studies.folder), 8000), **quiet})
        with TestClient(build_app(), base_url="http://127.0.0.1:8000") as client:
            yield Server(client, app_instance(), studies)
        apps.clear()


class ServerProcess:
    """``monai-diffae label-server`` as a process of its own; its output goes to a file beside the app.

    With the fixture ``start_program``, it is a fork of this process, which need not import everything again.
    """

    def __init__(self, app, studies, port, *options, start_program=None):
        self.url = f"http://127.0.0.1:{port}"
        self.output = app.with_suffix(".output")
        words = ["label-server", str(app), str(studies), "--port", str(port), *options]
        if start_program is not None:
            self.process = start_program(*words, output=self.output)
            return
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "monai_diffae", *words], env=environment, stdout=output, stderr=output
            )

    def exit_code(self):
        """None as long as it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def wait(self, timeout_s=180):
        """Return when the server answers."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            assert self.exit_code() is None, self.output.read_text()[-2000:]
            with suppress(requests.RequestException):
                requests.get(f"{self.url}/info/", timeout=5).raise_for_status()
                return
            time.sleep(0.2)
        raise TimeoutError(self.output.read_text()[-2000:])

    def close(self):
        """End the server as Ctrl-C does; returns the exit code."""
        if self.exit_code() is None:
            os.kill(self.process.pid, signal.SIGINT)
        wait_until(lambda: self.exit_code() is not None, 30)
        self.process.kill()
        return self.exit_code()
