"""An opened page of the tiny bundle: what answers its requests, and the addresses of running servers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from monai_diffae.apps.settings import Decoding, Reading, Run
from monai_diffae.explorer.app import build_app
from monai_diffae.explorer.exploration import Exploration
from monai_diffae.explorer.opening import Files, open_exploration

TOKEN = "the-token"


@pytest.fixture(scope="session")
def open_explored() -> Callable[..., Exploration]:
    """Opens what a page shows."""

    def open_files(bundle: Path, cohort: Path, out: Path, **files: Any) -> Exploration:
        return open_exploration(Files(bundle, cohort, out, **files), 4, Decoding(), Reading(), Run(device="cpu"))

    return open_files


@pytest.fixture(scope="session")
def explored(labelled, open_explored, tmp_path_factory) -> Iterator[Exploration]:
    """The tiny bundle, its cohort and one direction."""
    files = {"embeddings": labelled.embeddings, "directions": [labelled.direction]}
    opened = open_explored(labelled.bundle, labelled.cohort, tmp_path_factory.mktemp("explored"), **files)
    yield opened
    opened.close()


@contextmanager
def serving(exploration: Exploration) -> Iterator[str]:
    """The address of a page, with its token, while its server runs in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        app = build_app(exploration, TOKEN, port)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/?token={TOKEN}"
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="session")
def serve() -> Callable[[Exploration], Any]:
    """Serves a page: a context manager that returns its address."""
    return serving
