"""Servers for the tests of the MONAI Label app: in this process, and as a process of their own."""

import json
import os
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import requests
from forked_program import free_port, wait_until
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
    """``monai-diffae label-server`` in a process of its own, and MONAI Label's client for it."""

    def __init__(self, start_program, app, studies, port=None, *options):
        from monailabel.client import MONAILabelClient

        port, self.app, self.output = port or free_port(), app, app.with_suffix(".output")
        self.url = f"http://127.0.0.1:{port}"
        self.process = start_program("label-server", app, studies, "--port", port, *options, output=self.output)
        self.client = MONAILabelClient(self.url, str(app.parent))

        def answers():
            assert self.process.is_alive(), self.output.read_text()[-2000:]
            with suppress(requests.RequestException):
                return requests.get(f"{self.url}/info/", timeout=5).ok

        assert wait_until(answers, 180), self.output.read_text()[-2000:]

    def close(self):
        """End the server as Ctrl-C does; returns the exit code."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGINT)
        self.process.join(30)
        self.process.kill()
        return self.process.exitcode
