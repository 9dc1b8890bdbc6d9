"""An opened page of the tiny bundle: what answers its requests, and the addresses of running servers."""

from contextlib import contextmanager

import pytest
from forked_program import served

from monai_diffae.apps.settings import Decoding, Reading, Run
from monai_diffae.explorer.app import build_app
from monai_diffae.explorer.exploration import Caller, open_exploration

TOKEN = "the-token"


@pytest.fixture(scope="session")
def open_explored():
    """Opens what a page shows."""

    def open_files(bundle, cohort, out, embeddings=None, directions=()):
        caller = Caller(bundle, cohort, embeddings, Decoding(), Reading(), Run(device="cpu"))
        return open_exploration(caller, out, directions, 4)

    return open_files


@pytest.fixture(scope="session")
def explored(labelled, open_explored, tmp_path_factory):
    """The tiny bundle, its cohort and one direction."""
    files = {"embeddings": labelled.embeddings, "directions": [labelled.direction]}
    opened = open_explored(labelled.bundle, labelled.cohort, tmp_path_factory.mktemp("explored"), **files)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def serve():
    """Serves a page: a context manager that returns its address, with its token, while a server runs in a thread."""

    @contextmanager
    def serving(exploration):
        with served(lambda port: build_app(exploration, TOKEN, port)) as url:
            yield f"{url}/?token={TOKEN}"

    return serving
