"""The server: what it lists and answers, and that requests reach images of the datastore and options only."""

import re
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from fastapi.testclient import TestClient

from monai_diffae.data.scans import read_scan, write_scan
from monai_diffae.errors import ScanError
from monai_diffae.label import tasks
from monai_diffae.label.server import in_threads

TASKS = {"diffae_anomaly", "diffae_anomaly_map", "diffae_reconstruct", "diffae_edit", "diffae_encode",
         "diffae_predict", "diffae_neighbors"}  # fmt: skip
SCAN = "hippocampus_001"


def refusal(response):
    """The status, and the argument that the reason names."""
    return response.status_code, response.json()["detail"].partition(": ")[0]


def test_info_lists_everything_and_viewers_list_the_label_map(server_3d):
    info = server_3d.client.get("/info/").json()
    assert info["models"].keys() == TASKS
    segmentations = {name: task for name, task in info["models"].items() if task["type"] == "segmentation"}
    assert segmentations.keys() == {"diffae_anomaly"}
    assert segmentations["diffae_anomaly"]["labels"] == {"anomalies": 1}
    assert segmentations["diffae_anomaly"]["config"] == {"quantile": 0.99}
    assert all(task["dimension"] == 3 for task in info["models"].values())
    assert info["labels"] == ["anomalies"]
    assert (info["trainers"].keys(), info["scoring"].keys()) == ({"diffae"}, {"diffae_embed"})
    names = ("diffae_diversity", "diffae_outlier", "diffae_uncertain", "diffae_mixed", "random")
    assert set(names) <= set(info["strategies"])


def test_the_root_says_where_to_go(server_3d):
    places = server_3d.client.get("/").json().values()
    assert [server_3d.client.get(place).status_code for place in places if place.startswith("/")] == [200] * 3


def test_ohif_is_served_and_routes_and_pages_that_are_not_safe_are_left_out(server_3d):
    client = server_3d.client
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/infer/{model}", "/train/{model}", "/activelearning/{strategy}", "/datastore/label"} <= set(paths)
    page = client.get("/ohif/").text
    assert "<html" in page
    assert '<script src="http' not in page  # no page runs a script of another server
    for path in ("/docs", "/redoc", "/logs/", "/logs/gpu", "/model/diffae_encode"):
        assert client.get(path).status_code == 404
    assert client.put("/model/diffae_encode", files={"file": ("a.pt", b"x")}).status_code in (404, 405)
    assert client.post("/infer/wsi/diffae_encode?image=/etc/passwd").status_code == 404


def test_pages_of_this_machine_may_read_answers_and_those_of_others_may_not(server_3d):
    """tests/serving tests which pages these are."""
    response = server_3d.client.get("/info/", headers={"origin": "http://localhost:3000"})
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    for method in ("get", "options"):
        response = getattr(server_3d.client, method)("/info/", headers={"origin": "https://example.org"})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


def test_requests_reach_images_of_the_datastore_and_options_only(server_3d):
    for image in ("../studies/hippocampus_001", "/etc/passwd", "unknown"):
        assert refusal(server_3d.infer("diffae_encode", image)) == (404, "image")
    assert refusal(server_3d.infer("diffae_encode", SCAN, image="/etc/passwd")) == (404, "image")
    for params in ({"label": "/etc/passwd"}, {"unknown": 1}):
        assert refusal(server_3d.infer("diffae_encode", SCAN, **params)) == (400, "params")
    response = server_3d.client.post(f"/infer/diffae_encode?image={SCAN}", data={"params": "{"})
    assert refusal(response) == (400, "params")


def test_downloads_are_of_the_datastore_only(server_3d):
    client, source = server_3d.client, server_3d.studies.source[SCAN]
    assert client.get(f"/datastore/image?image={SCAN}").content == source.read_bytes()
    assert client.head(f"/datastore/image?image={SCAN}").status_code == 200
    for image in ("../app/settings", "/etc/passwd", "", "unknown"):
        for path in (f"image?image={image}", f"image/info?image={image}", f"label?label={image}&tag=final"):
            assert client.get(f"/datastore/{path}").status_code == 404
    assert client.get(f"/datastore/label?label={SCAN}&tag=../..").status_code == 404


def test_an_uploaded_file_is_read_and_other_and_damaged_files_are_refused(server_3d, tmp_path):
    source = server_3d.studies.source[SCAN]
    expected = server_3d.infer("diffae_encode", SCAN).json()["z_sem"]
    assert server_3d.upload("diffae_encode", source).json()["z_sem"] == expected
    assert refusal(server_3d.upload("diffae_encode", source, "../../a.exe")) == (400, "file")
    (tmp_path / "damaged.nii.gz").write_bytes(b"no scan")
    assert refusal(server_3d.upload("diffae_encode", tmp_path / "damaged.nii.gz")) == (422, "scan.nii.gz")


@pytest.mark.parametrize("change", [lambda mask: mask[:, :-1], lambda mask: mask + np.float32(0.5)])
def test_a_mask_of_another_shape_or_of_fractions_is_refused(server_3d, tmp_path, change):
    mask = change(np.zeros_like(read_scan(server_3d.studies.source[SCAN]).array))
    file = write_scan(tmp_path / "mask.nii.gz", mask, dtype=mask.dtype)
    sent = {"label": ("mask.nii.gz", file.read_bytes())}
    assert refusal(server_3d.client.put(f"/datastore/label?image={SCAN}&tag=final", files=sent)) == (400, "label")


def test_a_session_as_3d_slicer_uses_it_and_it_is_no_path(server_3d, tmp_path):
    client, source = server_3d.client, server_3d.studies.source[SCAN]
    session = client.put("/session/", files={"files": (source.name, source.read_bytes())}).json()["session_id"]
    response = client.post(f"/infer/diffae_encode?image=any&session_id={session}")
    assert response.json()["z_sem"] == server_3d.infer("diffae_encode", SCAN).json()["z_sem"]
    client.delete(f"/session/{session}")
    folder = tmp_path / "kept"  # MONAI Label would delete it, as its image is missing
    folder.mkdir()
    (folder / "meta.info").write_text('{"image": "missing.nii.gz"}')
    for name in (session, "../app", folder):
        assert refusal(client.post(f"/infer/diffae_encode?session_id={name}")) == (404, "session_id")
        for sent in (str(name), {"name": str(name)}):
            assert refusal(server_3d.infer("diffae_encode", SCAN, session=sent)) == (404, "session")
    assert folder.is_dir()
    # an archive can write files outside its folder, such as code of the app
    archive = {"files": ("scan.zip", source.read_bytes())}
    assert refusal(client.put("/session/?uncompress=true", files=archive)) == (400, "uncompress")


def test_a_task_gives_the_kinds_of_answers_that_it_has(server_3d):
    for output in ("image", "dicom_seg"):  # figures are no image
        assert refusal(server_3d.infer("diffae_encode", SCAN, output)) == (400, "output")
    assert refusal(server_3d.infer("diffae_anomaly", SCAN, "dicom_seg")) == (400, "output")  # without a DICOM server
    response = server_3d.infer("diffae_anomaly", SCAN, "all")
    assert response.headers["content-type"].startswith("multipart/form-data")
    assert b'"p_value"' in response.content
    assert b'"label_names": {"anomalies": 1}' in response.content


def test_requests_leave_no_files_behind(server_3d, tmp_path, monkeypatch):
    response = server_3d.infer("diffae_anomaly", SCAN, "image")
    name = re.search(r'filename="(.+?)"', response.headers["content-disposition"])[1]
    # MONAI Label's client saves into the temporary folder, under the name of the server's file
    assert not Path(tempfile.gettempdir(), name).exists()
    assert tasks._answers_folder() != tempfile.gettempdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tasks, "_answers_folder", lambda: str(tmp_path))
    source = server_3d.studies.source[SCAN]
    server_3d.infer("diffae_reconstruct", SCAN, "image")
    server_3d.infer("diffae_anomaly", SCAN, "all")
    server_3d.infer("diffae_reconstruct", SCAN, "image", result_dtype="int8")
    server_3d.upload("diffae_anomaly", source, output="image")
    server_3d.upload("unknown", source)
    server_3d.client.post("/infer/diffae_reconstruct", files={"file": ("damaged.nii.gz", b"no scan")})
    assert list(tmp_path.iterdir()) == []
    assert [path for path in (server_3d.app.folder.path / "sessions").rglob("*") if path.is_file()] == []


def application(num_threads=1):
    """Routes as MONAI Label declares them: async, and busy for a moment without awaiting."""
    slow, fast = APIRouter(prefix="/slow", tags=["Slow"]), APIRouter(prefix="/fast")
    running, most = [], []

    @slow.post("/{name}", summary="Takes a second")
    async def work(name: str, seconds: float = 0.2, user: str = Depends(lambda: "admin")):
        running.append(name)
        most.append(len(running))
        time.sleep(seconds)
        running.remove(name)
        if name == "broken":
            raise ScanError("a.nii: the file is empty; copy it again")
        return {"name": name, "user": user}

    @fast.get("/")
    async def answer():
        return "at once"

    app = FastAPI()
    app.include_router(in_threads(slow, num_threads))
    app.include_router(in_threads(fast))
    return app, most


def test_a_long_request_does_not_stop_the_server():
    app, _ = application()
    with TestClient(app) as client:
        thread = threading.Thread(target=client.post, args=["/slow/a?seconds=2"])
        thread.start()
        time.sleep(0.2)
        start = time.monotonic()
        assert client.get("/fast/").json() == "at once"
        assert time.monotonic() - start < 1
        assert thread.is_alive()
        thread.join()


def test_requests_of_a_router_wait_for_each_other():
    app, most = application(num_threads=2)
    with TestClient(app) as client, ThreadPoolExecutor(4) as threads:
        list(threads.map(client.post, [f"/slow/{i}" for i in range(4)]))
    assert max(most) == 2


def test_tasks_after_a_request_run_although_it_fails(tmp_path):
    """They delete an uploaded scan from the temporary folder."""
    router, upload = APIRouter(prefix="/upload"), tmp_path / "scan.nii.gz"

    @router.put("/")
    async def put(background_tasks: BackgroundTasks):
        upload.write_bytes(b"scan")
        background_tasks.add_task(upload.unlink)
        raise ScanError("a.nii: the file is empty; copy it again")

    app = FastAPI()
    app.include_router(in_threads(router))
    with TestClient(app) as client:
        assert client.put("/upload/").status_code == 422
    assert not upload.exists()
