"""A small DICOMweb server for tests: QIDO-RS for series, WADO-RS for whole series, on real DICOM files."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pydicom

_LISTED = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "StudyDate", "StudyTime")


@contextmanager
def dicomweb_server(folders, more_modalities=None, segmented=None):
    """The URL of a DICOMweb server of folders; series without files by modality; what a DICOM-SEG refers to."""
    files, rows, segmented = {}, {}, segmented or {}
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
        def do_GET(self):
            url = urlsplit(self.path)
            if url.path.endswith("/series"):
                self._search(parse_qs(url.query))
            elif url.path.endswith("/metadata"):
                self._describe(url.path.split("/")[-2])
            else:
                self._retrieve(url.path.split("/series/")[1].split("/")[0])

        def _search(self, query):
            names = {"SeriesInstanceUID": "0020000E", "Modality": "00080060"}
            asked = {tag: query[name] for name, tag in names.items() if name in query}
            matching = [row for row in rows.values() if all(row[tag]["Value"] == asked[tag] for tag in asked)]
            self._answer("application/dicom+json", json.dumps(matching).encode())

        def _describe(self, uid):
            if uid not in segmented:
                self.send_error(404)
                return
            described, referenced = pydicom.Dataset(), pydicom.Dataset()
            referenced.SeriesInstanceUID = segmented[uid]
            described.ReferencedSeriesSequence = [referenced]
            self._answer("application/dicom+json", json.dumps([described.to_json_dict()]).encode())

        def _retrieve(self, uid):
            if uid not in files:
                self.send_error(404)
                return
            head = b"--boundary\r\nContent-Type: application/dicom\r\n\r\n"
            parts = b"".join(head + path.read_bytes() + b"\r\n" for path in files[uid])
            self._answer('multipart/related; type="application/dicom"; boundary=boundary', parts + b"--boundary--")

        def _answer(self, kind, content):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
        server.shutdown()
