"""A small DICOMweb server for tests: QIDO-RS for series, WADO-RS for whole series, on real DICOM files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pydicom

_LISTED = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "StudyDate", "StudyTime")


@contextmanager
def dicomweb_server(
    folders: list[Path], more_modalities: dict[str, str] | None = None, segmented: dict[str, str] | None = None
) -> Iterator[str]:
    """A DICOMweb server.

    Args:
        folders: DICOM files.
        more_modalities: series without files: their modality by UID.
        segmented: series that a DICOM-SEG refers to, by the UID of the DICOM-SEG.

    Yields:
        The URL.
    """
    files: dict[str, list[Path]] = {}
    rows: dict[str, dict] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.dcm")):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            files.setdefault(header.SeriesInstanceUID, []).append(path)
            listed = pydicom.Dataset()
            for name in _LISTED:
                setattr(listed, name, header.get(name, ""))
            rows[header.SeriesInstanceUID] = listed.to_json_dict()
    for uid, modality in (more_modalities or {}).items():
        other = pydicom.Dataset()
        other.StudyInstanceUID, other.SeriesInstanceUID, other.Modality = "1.2.3", uid, modality
        rows[uid] = other.to_json_dict()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path.endswith("/series"):
                self._search(parse_qs(url.query))
            elif url.path.endswith("/metadata"):
                self._describe(url.path.split("/")[-2])
            else:
                self._retrieve(url.path.split("/series/")[1].split("/")[0])

        def _search(self, query: dict[str, list[str]]) -> None:
            names = {"SeriesInstanceUID": "0020000E", "Modality": "00080060"}
            found = [
                row for row in rows.values()
                if all(row[tag]["Value"] == query[name] for name, tag in names.items() if name in query)
            ]  # fmt: skip
            self._answer("application/dicom+json", json.dumps(found).encode())

        def _describe(self, uid: str) -> None:
            if uid not in (segmented or {}):
                self.send_error(404)
                return
            described, referenced = pydicom.Dataset(), pydicom.Dataset()
            referenced.SeriesInstanceUID = (segmented or {})[uid]
            described.ReferencedSeriesSequence = [referenced]
            self._answer("application/dicom+json", json.dumps([described.to_json_dict()]).encode())

        def _retrieve(self, uid: str) -> None:
            if uid not in files:
                self.send_error(404)
                return
            head = b"--boundary\r\nContent-Type: application/dicom\r\n\r\n"
            parts = b"".join(head + path.read_bytes() + b"\r\n" for path in files[uid])
            self._answer('multipart/related; type="application/dicom"; boundary=boundary', parts + b"--boundary--")

        def _answer(self, kind: str, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
        server.shutdown()
