"""A DICOMweb server as the datastore, on real series."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import pydicom
import pytest
from dicom_files import positions, save_planes
from dicomweb_server import dicomweb_server
from forked_program import free_port, served
from label_scans import Studies
from label_servers import server_in_this_process
from scan_files import shared
from starlette.responses import PlainTextResponse

from monai_diffae import label_app
from monai_diffae.label import dicomweb
from monai_diffae.label.dicomweb import DicomWebDatastore

OTHERS = {"1.2.3.4": "SEG", "1.2.3.7": "SEG", "1.2.3.5": "SR", "1.2.3.6": "CT"}


@pytest.fixture(scope="module")
def series():
    """The folders of two real series by UID."""
    folders = [shared("hippocampus_hcrop_dicom") / f"Study{name}_HCropVolume" for name in ("1_13", "2_14")]
    return {pydicom.dcmread(next(folder.glob("*.dcm"))).SeriesInstanceUID: folder for folder in folders}


@pytest.fixture(scope="module")
def server(bundle_3d, series, tmp_path_factory):
    """A server of two real series, the last with two DICOM-SEG, and one without files; tests change nothing of it."""
    segmented = dict.fromkeys(("1.2.3.4", "1.2.3.7"), list(series)[-1])
    with (
        dicomweb_server(list(series.values()), OTHERS, segmented) as url,
        server_in_this_process(tmp_path_factory.mktemp("dicomweb") / "app", bundle_3d, Studies(url, series)) as server,
    ):
        yield server


@pytest.fixture
def own_server(serve, bundle_3d, series):
    with dicomweb_server(list(series.values()), OTHERS) as url:
        yield serve(bundle_3d, Studies(url, series))


def test_series_with_images_of_any_or_one_modality_are_listed_and_labelled_ones_count_once(server, series):
    assert server.app.datastore().list_images() == sorted([*series, "1.2.3.6"])
    assert server.app.datastore().get_labeled_images() == [list(series)[-1]]
    status = server.client.get("/info/").json()["datastore"]
    assert (status["total"], status["completed"]) == (3, 1)
    assert DicomWebDatastore(server.studies.folder, {"Modality": "CT"}).list_images() == ["1.2.3.6"]


def test_a_series_is_encoded_and_its_mask_has_its_grid(server, series, tmp_path):
    uid = next(iter(series))
    assert server.infer("diffae_encode", uid).status_code == 200
    response = server.infer("diffae_anomaly", uid, "image")
    assert response.status_code == 200, response.text
    (tmp_path / "mask.nii.gz").write_bytes(response.content)
    files = list(series[uid].glob("*.dcm"))
    header = pydicom.dcmread(files[0])
    assert sorted(nib.load(tmp_path / "mask.nii.gz").shape) == sorted([header.Rows, header.Columns, len(files)])


def test_unknown_series_paths_and_uploads_are_refused(server, series):
    for uid, status in (("9.9.9", 404), ("../x", 400), ("name", 400), ("1.2.3.", 400)):
        response = server.infer("diffae_encode", uid)
        assert (response.status_code, response.json()["detail"][:7]) == (status, "image: "), uid
    response = server.client.put("/datastore/image?image=1.2.9", files={"file": ("a.dcm", b"x")})
    assert (response.status_code, response.json()["detail"][:7]) == (400, "image: ")


def test_a_series_that_cannot_be_fetched_is_a_failure_of_its_own(server, series):
    result = server.score()
    assert (result["images"], result["failed"].keys()) == (2, {"1.2.3.6"})
    assert server.client.post("/activelearning/diffae_diversity").json()["id"] == next(iter(series))


def test_labels_are_saved(own_server, series, volumes):
    uid, label = next(iter(series)), next(iter(volumes.values())).read_bytes()
    for tag, status in (("original", 200), ("reader", 200), ("../x", 400)):  # final ones become DICOM-SEG on the server
        path = f"/datastore/label?image={uid}&tag={tag}"
        response = own_server.client.put(path, files={"label": ("a.nii.gz", label)})
        assert response.status_code == status, response.text
    assert own_server.client.get(f"/datastore/label?label={uid}&tag=original").content == label


def test_a_series_that_is_being_fetched_is_waited_for(own_server, series, monkeypatch):
    """MONAI Label takes the slices that another thread or process has written so far for the whole series."""
    uid, folder = next(iter(series.items()))
    half_done, go_on = threading.Event(), threading.Event()

    def slowly(_study, uid, target, *_rest):
        files = sorted(series[uid].glob("*.dcm"))
        for number, file in enumerate(files):
            shutil.copy(file, target)
            if number == len(files) // 2:
                half_done.set()
                assert go_on.wait(30)

    monkeypatch.setattr(dicomweb, "dicom_web_download_series", slowly)
    store = own_server.app.datastore()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(store.get_image_uri, uid)
        assert half_done.wait(30)
        second = threads.submit(store.get_image_uri, uid)
        time.sleep(0.3)
        assert not second.done()
        go_on.set()
        assert first.result(30) == second.result(30)
    assert nib.load(first.result()).shape[2] == len(list(folder.glob("*.dcm")))
    assert store.get_image_info(uid)["StudyInstanceUID"]  # OHIF opens the study of the next sample
    assert not list(Path(first.result()).parent.glob(".tmp-*"))


def test_series_with_a_missing_slice_or_a_tilt_are_refused(serve, bundle_3d, series, tmp_path):
    """MONAI Label converts them as if they had no gap and no tilt, so that a mask would lie elsewhere."""
    uid, folder = next(iter(series.items()))
    shutil.copytree(folder, tmp_path / "gap", ignore=shutil.ignore_patterns("*.txt"))
    heights = {file: float(pydicom.dcmread(file).ImagePositionPatient[2]) for file in (tmp_path / "gap").glob("*.dcm")}
    sorted(heights, key=heights.get)[10].unlink()
    tilted = save_planes(tmp_path / "ct", positions(n=6, tilt=0.6))
    reasons = {uid: "slice", pydicom.dcmread(next(tilted.glob("*.dcm"))).SeriesInstanceUID: "tilted"}
    with dicomweb_server([tmp_path / "gap", tilted]) as url:
        server = serve(bundle_3d, Studies(url, series))
        for uid, reason in reasons.items():
            answer = server.infer("diffae_encode", uid)
            assert (answer.status_code, reason in answer.json()["detail"]) == (422, True)
        assert server.score()["failed"].keys() == reasons.keys()


def test_a_dicom_server_that_does_not_answer_is_one_line(bundle_3d, start_program, tmp_path):
    app = label_app(tmp_path / "app", bundle=bundle_3d, refer=True).folder
    with served(lambda _: PlainTextResponse("<html>")) as other:
        for number, url in enumerate((other, f"http://127.0.0.1:{free_port()}")):
            output = tmp_path / str(number)
            server = start_program("label-server", app, url, "--port", free_port(), output=output)
            server.join(60)
            *lines, last = output.read_text().splitlines()
            assert (server.exitcode, last.partition(" server")[0]) == (6, "error: --studies: the DICOMweb")
            assert not [line for line in lines if "Traceback" in line or "serving at" in line or "error" in line]
