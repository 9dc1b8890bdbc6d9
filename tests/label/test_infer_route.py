"""``POST /infer/{model}``: uploads, sessions and kinds of answers."""

import re
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")


@pytest.fixture
def server(serve, bundle_3d, studies_3d):
    return serve(bundle_3d, studies_3d)


def upload(server, source, name=None, **query):
    words = "&".join(f"{key}={value}" for key, value in query.items())
    with open(source, "rb") as stream:
        return server.client.post(f"/infer/diffae_encode?{words}", files={"file": (name or source.name, stream)})


def test_an_uploaded_file_is_read(server):
    expected = server.infer("diffae_encode", "hippocampus_001").json()["z_sem"]
    assert upload(server, server.studies.source["hippocampus_001"]).json()["z_sem"] == expected


def test_other_and_damaged_files_are_refused(server, tmp_path):
    for name in ("a.txt", "a", "../../a.exe", "nii.gz.py"):
        response = upload(server, server.studies.source["hippocampus_001"], name)
        assert (response.status_code, response.json()["detail"][:6]) == (400, "file: ")
    (tmp_path / "damaged.nii.gz").write_bytes(b"no scan")
    response = upload(server, tmp_path / "damaged.nii.gz")
    assert (response.status_code, response.json()["detail"].startswith("scan.nii.gz: ")) == (422, True)


def test_a_session_as_3d_slicer_uses_it(server):
    source = server.studies.source["hippocampus_001"]
    with open(source, "rb") as stream:
        answer = server.client.put("/session/", files={"files": (source.name, stream)})
    session = answer.json()["session_id"]
    response = server.client.post(f"/infer/diffae_encode?image=any&session_id={session}")
    assert response.json()["z_sem"] == server.infer("diffae_encode", "hippocampus_001").json()["z_sem"]
    server.client.delete(f"/session/{session}")
    assert server.client.post(f"/infer/diffae_encode?session_id={session}").status_code == 404


def test_a_session_is_not_a_path(server):
    for session, status in (("../app", 400), ("/etc", 400), ("unknown", 404), ("..", 400)):
        response = server.client.post(f"/infer/diffae_encode?session_id={session}")
        assert (response.status_code, response.json()["detail"][:12]) == (status, "session_id: ")


def test_a_task_gives_the_kinds_of_answers_that_it_has(server):
    for output in ("image", "dicom_seg"):  # figures are no image
        response = server.infer("diffae_encode", "hippocampus_001", output)
        assert (response.status_code, response.json()["detail"][:8]) == (400, "output: ")
    response = server.infer("diffae_anomaly", "hippocampus_001", "dicom_seg")
    assert "DICOM SEG format is not supported" in response.json()["detail"]  # without a DICOM server
    response = server.infer("diffae_anomaly", "hippocampus_001", "all")
    assert response.headers["content-type"].startswith("multipart/form-data")
    assert b'"p_value"' in response.content
    assert b'"label_names": {"anomalies": 1}' in response.content
    source = server.studies.source["hippocampus_001"]
    with open(source, "rb") as stream:
        response = server.client.post("/infer/diffae_encode?image=hippocampus_001", files={"label": ("l.bin", stream)})
    assert (response.status_code, response.json()["detail"]) == (400, "label: diffae_encode takes no label; omit it")


def test_what_a_client_on_this_machine_saves_is_not_removed(server):
    """MONAI Label's client saves into the temporary folder, under the name of the server's file."""
    response = server.infer("diffae_anomaly", "hippocampus_001", "image")
    name = re.search(r'filename="(.+?)"', response.headers["content-disposition"])[1]
    assert not Path(tempfile.gettempdir(), name).exists()
    task = server.app._infers["diffae_anomaly"]
    file, _ = task({"image": str(server.studies.source["hippocampus_001"])})
    assert Path(file).parent != Path(tempfile.gettempdir())
    Path(file).unlink()
