"""A DICOMweb server as the datastore, on real series."""

import shutil
import threading
import time
from pathlib import Path

import nibabel as nib
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

import pydicom
from dicomweb_server import dicomweb_server
from label_scans import Studies, shared

OTHERS = {"1.2.3.4": "SEG", "1.2.3.5": "SR", "1.2.3.6": "CT"}


@pytest.fixture(scope="module")
def series():
    """The folders of two real series by UID."""
    folders = [shared(f"hippocampus_hcrop_dicom/{name}", "*.dcm")[0].parent
               for name in ("Study1_13_HCropVolume", "Study2_14_HCropVolume")]  # fmt: skip
    return {pydicom.dcmread(next(folder.glob("*.dcm"))).SeriesInstanceUID: folder for folder in folders}


@pytest.fixture
def server(serve, bundle_3d, series):
    with dicomweb_server(list(series.values()), OTHERS) as url:
        yield serve(bundle_3d, Studies(url, series))


def test_series_with_images_of_any_modality_are_listed(server, series):
    assert server.app.datastore().list_images() == sorted([*series, "1.2.3.6"])
    assert server.client.get("/info/").json()["datastore"]["total"] == 3


def test_a_series_with_several_dicom_seg_counts_once(serve, bundle_3d, series):
    uid = next(iter(series))
    segs = {"1.2.3.4": uid, "1.2.3.7": uid}
    with dicomweb_server(list(series.values()), {**OTHERS, "1.2.3.7": "SEG"}, segs) as url:
        server = serve(bundle_3d, Studies(url, series))
        assert server.app.datastore().get_labeled_images() == [uid]
        assert server.client.get("/info/").json()["datastore"]["completed"] == 1
        assert uid not in server.app.datastore().get_unlabeled_images()


def test_a_modality_can_be_chosen(serve, bundle_3d, series, monkeypatch):
    from monailabel.config import settings

    from monai_diffae.label.dicomweb import DicomWebDatastore

    with dicomweb_server(list(series.values()), OTHERS) as url:
        serve(bundle_3d, Studies(url, series))
        assert settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {}
        assert DicomWebDatastore(url, {"Modality": "CT"}).list_images() == ["1.2.3.6"]


def test_a_series_is_encoded_and_its_mask_has_its_grid(server, series, tmp_path):
    uid = next(iter(series))
    assert server.infer("diffae_encode", uid).status_code == 200
    response = server.infer("diffae_anomaly", uid, "image")
    assert response.status_code == 200, response.text
    (tmp_path / "mask.nii.gz").write_bytes(response.content)
    header = pydicom.dcmread(next(series[uid].glob("*.dcm")))
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert sorted(mask.shape) == sorted([header.Rows, header.Columns, len(list(series[uid].glob("*.dcm")))])


def test_unknown_series_and_paths_are_refused(server):
    for uid, status in (("9.9.9", 404), ("../x", 400), ("name", 400), ("", 400), ("1.2.3.", 400)):
        response = server.infer("diffae_encode", uid)
        assert (response.status_code, response.json()["detail"][:7]) == (status, "image: "), uid


def test_a_series_that_cannot_be_fetched_is_a_failure_of_its_own(server, series):
    result = server.client.post("/scoring/diffae_embed?run_sync=true").json()
    assert result["images"] == 2
    assert result["failed"].keys() == {"1.2.3.6"}
    assert {server.client.post("/activelearning/diffae_diversity").json()["id"] for _ in range(2)} == set(series)


def test_images_are_not_uploaded(server, series):
    file = next(next(iter(series.values())).glob("*.dcm"))
    response = server.client.put("/datastore/image?image=1.2.9", files={"file": ("a.dcm", file.read_bytes())})
    assert (response.status_code, response.json()["detail"][:7]) == (400, "image: ")


def test_labels_that_are_saved_count_once(server, series, volumes):
    uid = next(iter(series))
    label = next(iter(volumes.values()))
    for tag in ("original", "reader"):  # final ones become DICOM-SEG on the server
        with open(label, "rb") as stream:
            response = server.client.put(
                f"/datastore/label?image={uid}&tag={tag}", files={"label": (label.name, stream)}
            )
        assert response.status_code == 200, response.text
    assert server.client.get(f"/datastore/label?label={uid}&tag=original").content == label.read_bytes()
    assert (
        server.client.put(f"/datastore/label?image={uid}&tag=../x", files={"label": ("a.nii", b"x")}).status_code == 400
    )


def test_a_series_that_is_being_fetched_is_waited_for(server, series, monkeypatch):
    """MONAI Label takes the slices that another thread or process has written so far for the whole series."""
    from concurrent.futures import ThreadPoolExecutor

    from monai_diffae.label import dicomweb

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
    store = server.app.datastore()
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


def test_a_series_with_a_missing_slice_is_refused(serve, bundle_3d, series, tmp_path):
    """MONAI Label converts it as if the slices were evenly spaced."""
    uid, folder = next(iter(series.items()))
    shutil.copytree(folder, tmp_path / "gap", ignore=shutil.ignore_patterns("*.txt"))
    positions = {
        file: float(pydicom.dcmread(file).ImagePositionPatient[2]) for file in (tmp_path / "gap").glob("*.dcm")
    }
    sorted(positions, key=positions.get)[10].unlink()
    with dicomweb_server([tmp_path / "gap"]) as url:
        server = serve(bundle_3d, Studies(url, series))
        answer = server.infer("diffae_encode", uid)
        assert answer.status_code == 422
        assert "slice" in answer.json()["detail"]
        assert server.client.post("/scoring/diffae_embed?run_sync=true").json()["failed"].keys() == {uid}


def test_a_tilted_series_is_refused(serve, bundle_3d, series, tmp_path):
    """MONAI Label converts it without the tilt: a mask would lie elsewhere."""
    from dicom_files import positions, save_planes

    folder = save_planes(tmp_path / "ct", positions(n=6, tilt=0.6))
    uid = pydicom.dcmread(next(folder.glob("*.dcm"))).SeriesInstanceUID
    with dicomweb_server([folder]) as url:
        answer = serve(bundle_3d, Studies(url, {uid: folder})).infer("diffae_encode", uid)
    assert (answer.status_code, "tilted" in answer.json()["detail"]) == (422, True)
