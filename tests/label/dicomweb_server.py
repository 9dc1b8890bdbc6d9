"""A small DICOMweb server for tests: QIDO-RS for series, WADO-RS for whole series, on real DICOM files."""

from contextlib import contextmanager

import pydicom
from forked_program import served
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_LISTED = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "StudyDate", "StudyTime")
_JSON = "application/dicom+json"


def _dataset(**tags):
    dataset = pydicom.Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


@contextmanager
def dicomweb_server(folders, more_modalities=None, segmented=None):
    """The URL of a DICOMweb server of folders; series without files by modality; what a DICOM-SEG refers to."""
    files, rows, segmented = {}, {}, segmented or {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.dcm"))):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        files.setdefault(header.SeriesInstanceUID, []).append(path)
        rows[header.SeriesInstanceUID] = {name: header.get(name, "") for name in _LISTED}
    for uid, modality in (more_modalities or {}).items():
        rows[uid] = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": uid, "Modality": modality}

    def search(request):
        asked = {name: value for name, value in request.query_params.items() if name in _LISTED}
        matching = [_dataset(**row).to_json_dict() for row in rows.values() if asked.items() <= row.items()]
        return JSONResponse(matching, media_type=_JSON)

    def describe(request):
        if (uid := request.path_params["uid"]) not in segmented:
            return Response(status_code=404)
        described = _dataset(ReferencedSeriesSequence=[_dataset(SeriesInstanceUID=segmented[uid])])
        return JSONResponse([described.to_json_dict()], media_type=_JSON)

    def retrieve(request):
        if (uid := request.path_params["uid"]) not in files:
            return Response(status_code=404)
        head = b"--boundary\r\nContent-Type: application/dicom\r\n\r\n"
        parts = b"".join(head + path.read_bytes() + b"\r\n" for path in files[uid])
        kind = 'multipart/related; type="application/dicom"; boundary=boundary'
        return Response(parts + b"--boundary--", media_type=kind)

    paths = {"series": search, "series/{uid}/metadata": describe, "series/{uid}": retrieve}
    routes = [Route(f"/{{study:path}}/{path}", answer) for path, answer in paths.items()]
    with served(lambda _: Starlette(routes=routes)) as url:
        yield f"{url}/dicom-web"
