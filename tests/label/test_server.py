"""The server: what it lists and answers, and that requests reach images of the datastore and options only."""

import io
import json
import re
import tarfile
import tempfile
from pathlib import Path

TASKS = {"diffae_anomaly", "diffae_anomaly_map", "diffae_reconstruct", "diffae_edit", "diffae_encode",
         "diffae_neighbors"}  # fmt: skip
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
    for path in ("/infer/wsi/diffae_encode?image=/etc/passwd", "/reload"):
        assert client.post(path).status_code == 404


def test_pages_of_this_machine_may_read_answers_and_those_of_others_may_not(server_3d):
    client = server_3d.client
    for origin in ("http://localhost:3000", "http://127.0.0.1:8000"):
        response = client.get("/info/", headers={"origin": origin})
        assert response.headers["access-control-allow-origin"] == origin
    for method in ("get", "post", "options"):
        response = getattr(client, method)("/info/", headers={"origin": "https://example.org"})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    assert client.get("/info/", headers={"host": "rebound.example.org"}).status_code == 403


def test_requests_reach_images_of_the_datastore_and_options_only(server_3d):
    for image, status in (("", 400), ("../studies/hippocampus_001", 400), ("/etc/passwd", 400), ("unknown", 404)):
        for model in TASKS:
            assert refusal(server_3d.infer(model, image)) == (status, "image")
    for params in ({"image": "/etc/passwd"}, {"session": {"name": "../x"}}, {"label": "/etc/passwd"}, {"unknown": 1}):
        assert refusal(server_3d.infer("diffae_encode", SCAN, **params)) == (400, "params")
    for text in ("{", "[]", "null"):
        response = server_3d.client.post(f"/infer/diffae_encode?image={SCAN}", data={"params": text})
        assert refusal(response) == (400, "params")


def test_downloads_are_of_the_datastore_only(server_3d):
    client, source = server_3d.client, server_3d.studies.source[SCAN]
    assert client.get(f"/datastore/image?image={SCAN}").content == source.read_bytes()
    assert client.head(f"/datastore/image?image={SCAN}").status_code == 200
    for image, status in (("../app/settings", 400), ("/etc/passwd", 400), ("", 400), ("unknown", 404)):
        for path in ("image", "image/info"):
            assert client.get(f"/datastore/{path}?image={image}").status_code == status
        for path in ("label", "label/info"):
            assert client.get(f"/datastore/{path}?label={image}&tag=final").status_code in (400, 404)
    assert client.get(f"/datastore/label?label={SCAN}&tag=../..").status_code == 400


def test_an_uploaded_file_is_read_and_other_and_damaged_files_are_refused(server_3d, tmp_path):
    source = server_3d.studies.source[SCAN]
    expected = server_3d.infer("diffae_encode", SCAN).json()["z_sem"]
    assert server_3d.upload("diffae_encode", source).json()["z_sem"] == expected
    for name in ("a.txt", "a", "../../a.exe", "nii.gz.py"):
        assert refusal(server_3d.upload("diffae_encode", source, name)) == (400, "file")
    (tmp_path / "damaged.nii.gz").write_bytes(b"no scan")
    assert refusal(server_3d.upload("diffae_encode", tmp_path / "damaged.nii.gz")) == (422, "scan.nii.gz")


def test_a_session_as_3d_slicer_uses_it_and_it_is_no_path(server_3d, tmp_path):
    client, source = server_3d.client, server_3d.studies.source[SCAN]
    session = client.put("/session/", files={"files": (source.name, source.read_bytes())}).json()["session_id"]
    response = client.post(f"/infer/diffae_encode?image=any&session_id={session}")
    assert response.json()["z_sem"] == server_3d.infer("diffae_encode", SCAN).json()["z_sem"]
    client.delete(f"/session/{session}")
    for name, status in ((session, 404), ("../app", 400), ("/etc", 400), ("..", 400)):
        assert refusal(client.post(f"/infer/diffae_encode?session_id={name}")) == (status, "session_id")
    target = tmp_path / "outside.txt"
    with tarfile.open(fileobj=(archive := io.BytesIO()), mode="w:gz") as writer:
        member = tarfile.TarInfo("../" * 12 + str(target)[1:])
        member.size = 1
        writer.addfile(member, io.BytesIO(b"x"))
    response = client.put("/session/?uncompress=true", files={"files": ("a.tar.gz", archive.getvalue())})
    assert refusal(response) == (400, "uncompress")
    assert not target.exists()


def test_a_task_gives_the_kinds_of_answers_that_it_has(server_3d):
    for output in ("image", "dicom_seg"):  # figures are no image
        assert refusal(server_3d.infer("diffae_encode", SCAN, output)) == (400, "output")
    response = server_3d.infer("diffae_anomaly", SCAN, "dicom_seg")
    assert "DICOM SEG format is not supported" in response.json()["detail"]  # without a DICOM server
    response = server_3d.infer("diffae_anomaly", SCAN, "all")
    assert response.headers["content-type"].startswith("multipart/form-data")
    assert b'"p_value"' in response.content
    assert b'"label_names": {"anomalies": 1}' in response.content
    label = {"label": ("l.bin", b"x")}
    assert refusal(server_3d.client.post(f"/infer/diffae_encode?image={SCAN}", files=label)) == (400, "label")


def test_requests_leave_no_files_behind(server_3d, tmp_path, monkeypatch):
    from monai_diffae.label import task

    response = server_3d.infer("diffae_anomaly", SCAN, "image")
    name = re.search(r'filename="(.+?)"', response.headers["content-disposition"])[1]
    # MONAI Label's client saves into the temporary folder, under the name of the server's file
    assert not Path(tempfile.gettempdir(), name).exists()
    assert task._answers_folder() != tempfile.gettempdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(task, "_answers_folder", lambda: str(tmp_path))
    source = server_3d.studies.source[SCAN]
    server_3d.infer("diffae_reconstruct", SCAN, "image")
    server_3d.infer("diffae_anomaly", SCAN, "all")
    server_3d.infer("diffae_reconstruct", SCAN, "image", result_dtype="int8")
    server_3d.upload("diffae_anomaly", source, output="image")
    server_3d.upload("unknown", source)
    server_3d.client.post("/infer/diffae_reconstruct", files={"file": ("damaged.nii.gz", b"no scan")})
    assert list(tmp_path.iterdir()) == []
    assert [path for path in (server_3d.app.folder.path / "sessions").rglob("*") if path.is_file()] == []


def test_infos_that_cannot_be_sent_back_are_not_stored(serve, bundle_3d, studies_3d):
    client = serve(bundle_3d, studies_3d).client
    image, other = (source.read_bytes() for source in list(studies_3d.source.values())[:2])
    client.put(f"/datastore/label?image={SCAN}&tag=final", files={"label": ("a.nii.gz", image)})
    for text in ('{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "[1]", "{", "[" * 100_000,
                 '{"strategy": [1]}', '{"strategy": {"a": 5}}', '{"strategy": {"a": {"ts": "x"}}}'):  # fmt: skip
        label = {"label": ("a.nii.gz", image)}
        for response in (
            client.put("/datastore/image?image=new", files={"file": ("a.nii.gz", other)}, data={"params": text}),
            client.put(f"/datastore/image/info?image={SCAN}", data={"info": text}),
            client.put(f"/datastore/label?image={SCAN}&tag=final", files=label, data={"params": text}),
            client.put(f"/datastore/label/info?label={SCAN}&tag=final", data={"info": text}),
        ):
            assert refusal(response) in ((400, "params"), (400, "info")), response.text
    assert client.get("/datastore/?output=all").status_code == 200
    assert client.post("/activelearning/random", json={}).status_code == 200


def test_monai_labels_own_server_runs_the_app_with_the_same_checks(server_3d):
    from fastapi.testclient import TestClient
    from monailabel.app import app as stock

    with TestClient(stock) as client:
        assert client.get("/info/").json()["models"].keys() == TASKS
        assert client.post(f"/infer/diffae_encode?image={SCAN}&output=json").status_code == 200
        for image, params in (("../x", {}), ("unknown", {}), (SCAN, {"image": "/etc/passwd"})):
            response = client.post(f"/infer/diffae_encode?image={image}", data={"params": json.dumps(params)})
            assert refusal(response) in ((400, "image"), (404, "image"))
        assert client.post("/infer/wsi/diffae_encode?image=/etc/passwd").status_code == 404
        assert client.post("/train/diffae?run_sync=true", json={"max_epochs": 0}).status_code == 400
