"""The command ``label-server``: what it refuses. tests/label/test_end_to_end.py runs it."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from monai_diffae import label_app, label_server
from monai_diffae.errors import ConfigError, MachineError


@pytest.fixture
def app(tiny_bundle, tmp_path):
    return label_app(tmp_path / "app", bundle=tiny_bundle.directory).folder


def test_a_folder_that_is_no_app_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not an app"):
        label_server(tmp_path, str(tmp_path))


def test_studies_that_do_not_exist_are_refused_and_not_made(app, tmp_path):
    with pytest.raises(ConfigError, match="studies: scans is not a folder"):
        label_server(app, str(tmp_path / "scans"))
    assert not (tmp_path / "scans").exists()


def test_without_monai_label_the_message_says_how_to_install_it(app, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "monailabel", None)
    monkeypatch.setattr("monai_diffae.label.label_server.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'monai-diffae\[label\]'"):
        label_server(app, str(tmp_path))


def test_a_port_in_use_is_refused(app, tmp_path):
    pytest.importorskip("monailabel", reason="MONAI Label is not installed")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(MachineError, match="Address already in use"):
            label_server(app, str(tmp_path), port=other.getsockname()[1])


@pytest.mark.parametrize("port", [0, 65536, "x"])
def test_a_port_is_a_number(app, tmp_path, port):
    with pytest.raises(ConfigError, match=r"^port: "):
        label_server(app, str(tmp_path), port=port)


@pytest.mark.parametrize("page", [None, b"<html>"])
def test_a_dicom_server_that_does_not_answer_is_one_line(app, page):
    pytest.importorskip("monailabel", reason="MONAI Label is not installed")
    with http_server(page) as url:
        command = [sys.executable, "-m", "monai_diffae", "label-server", app, url, "--port", str(free_port())]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 6
    message = ended.stderr.strip().splitlines()[-1]
    assert "studies: the DICOMweb server" in message
    assert "Traceback" not in ended.stderr + ended.stdout
    assert "serving at" not in ended.stderr + ended.stdout


def free_port() -> int:
    with socket.socket() as test:
        test.bind(("127.0.0.1", 0))
        return int(test.getsockname()[1])


@contextmanager
def http_server(page: bytes | None) -> Iterator[str]:
    """The URL of a server that answers with a page; None: no server listens there."""
    if page is None:
        yield f"http://127.0.0.1:{free_port()}/dicom-web"
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
