"""The app beside a real Orthanc with DICOMweb: `make test-orthanc`."""

import io
import json
import subprocess
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from forked_program import free_port, programs, wait_until
from label_servers import ServerProcess
from scan_files import shared

from monai_diffae import label_app, load_bundle

PROGRAM = Path("/usr/sbin/Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
pytestmark = [
    pytest.mark.orthanc,
    pytest.mark.slow,
    pytest.mark.skipif(not PLUGIN.exists(), reason="needs Debian's orthanc-dicomweb"),
]
LABEL_INFO = [{"name": "anomalies", "idx": 1, "model_name": "diffae_anomaly"}]


class Orthanc:
    """Orthanc as a subprocess, with its storage in a folder.

    Orthanc 1.12.7 listens on all interfaces whatever ``HttpBindAddresses`` says, so ``RemoteAccessAllowed`` refuses
    what does not come from this machine. `make test-orthanc` moreover runs in a network namespace of its own.
    """

    def __init__(self, folder, port):
        folder.mkdir()
        self.url = f"http://127.0.0.1:{port}"
        self.dicom_web_url = f"{self.url}/dicom-web"
        settings = {
            "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(PLUGIN)], "HttpPort": port, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "DicomServerEnabled": False, "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self._log = (folder / "orthanc.log").open("wb")
        self._process = subprocess.Popen([PROGRAM, folder / "orthanc.json"], stdout=self._log, stderr=self._log)

    def wait(self, timeout_s=60):
        """Return when the server answers."""

        def answers():
            assert self._process.poll() is None
            with suppress(requests.RequestException):
                return requests.get(f"{self.url}/system", timeout=5).ok

        assert wait_until(answers, timeout_s)

    def upload(self, folder):
        """Store the DICOM files of one series; return its SeriesInstanceUID."""
        answers = []
        for file in sorted(folder.glob("*.dcm")):
            answer = requests.post(f"{self.url}/instances", data=file.read_bytes(), timeout=30)
            answer.raise_for_status()
            answers.append(answer.json())
        (series,) = {answer["ParentSeries"] for answer in answers}
        return self._tags("series", series)["SeriesInstanceUID"]

    def series(self):
        """All series: ``Modality``, ``SeriesInstanceUID``, ``SeriesDescription``, ``StudyInstanceUID``."""
        ids = requests.get(f"{self.url}/series", timeout=30).json()
        return [self._tags("series", one) | self._tags("series", one, "study") for one in ids]

    def instances(self, series_uid):
        """The DICOM files of a series."""
        found = requests.post(f"{self.url}/tools/lookup", data=series_uid, timeout=30).json()
        ids = requests.get(f"{self.url}/series/{found[0]['ID']}", timeout=30).json()["Instances"]
        return [requests.get(f"{self.url}/instances/{one}/file", timeout=30).content for one in ids]

    def close(self):
        """Stop the server."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def _tags(self, level, one, parent=""):
        answer = requests.get("/".join(filter(None, [self.url, level, one, parent])), timeout=30)
        answer.raise_for_status()
        return answer.json()["MainDicomTags"]


@dataclass(frozen=True)
class Stand:
    """Orthanc, our server, and the series that Orthanc holds by their SeriesInstanceUIDs."""

    orthanc: Orthanc
    server: ServerProcess
    bundle: Path
    hippocampus: str
    head: str

    def infer(self, task, series, output, **params):
        """The answer of a task."""
        return requests.post(
            f"{self.server.url}/infer/{task}",
            params={"image": series, "output": output},
            data={"params": json.dumps(params)},
            timeout=120,
        )


@pytest.fixture(scope="module")
def stand(bundle_3d, tmp_path_factory):
    """Two real series in Orthanc; our server beside it."""
    root = tmp_path_factory.mktemp("orthanc")
    folders = [
        shared("hippocampus_hcrop_dicom/Study1_13_HCropVolume"),
        shared("dicom_mr_brain_pgbm003/11-T1post-18670"),
    ]
    label_app(root / "app", bundle=bundle_3d)
    orthanc = Orthanc(root / "orthanc", free_port())
    with closing(orthanc), programs() as start:
        orthanc.wait()
        series = [orthanc.upload(folder) for folder in folders]
        server = ServerProcess(start, root / "app", orthanc.dicom_web_url, None, "--modality", "MR")
        yield Stand(orthanc, server, bundle_3d, *series)
        server.close()


def test_a_series_is_encoded_as_the_same_files_are_in_a_folder(stand):
    """MONAI Label converts the series to NIfTI; z_sem is that of our own reader all the same."""
    answer = stand.infer("diffae_encode", stand.hippocampus, "json")
    assert answer.status_code == 200, answer.text
    ours = load_bundle(stand.bundle, "cpu").open(shared("hippocampus_hcrop_dicom") / "Study1_13_HCropVolume").z_sem
    np.testing.assert_allclose(answer.json()["z_sem"], ours.numpy(), atol=1e-4)


def test_an_anomaly_mask_as_dicom_seg(stand):
    answer = stand.infer("diffae_anomaly", stand.hippocampus, "dicom_seg", label_info=LABEL_INFO, quantile=0.9)
    assert answer.status_code == 200, answer.text
    segmentation = pydicom.dcmread(io.BytesIO(answer.content))
    assert segmentation.SOPClassUID == pydicom.uid.SegmentationStorage
    assert [one.SegmentLabel for one in segmentation.SegmentSequence] == ["anomalies"]
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == stand.hippocampus
    assert segmentation.pixel_array.max() == 1


def test_a_label_is_stored_in_orthanc_and_counts_as_annotated(stand, tmp_path):
    """As 3D Slicer submits one: a NIfTI file with the tag ``final``."""
    before = [one for one in stand.orthanc.series() if one["Modality"] == "SEG"]
    mask = stand.infer("diffae_anomaly", stand.hippocampus, "image", result_extension=".nii.gz", quantile=0.9)
    (tmp_path / "label.nii.gz").write_bytes(mask.content)
    stand.server.client.save_label(stand.hippocampus, str(tmp_path / "label.nii.gz"), params={"label_info": LABEL_INFO})
    (stored,) = [
        one for one in stand.orthanc.series()
        if one["Modality"] == "SEG" and one["SeriesInstanceUID"] not in {old["SeriesInstanceUID"] for old in before}
    ]  # fmt: skip
    source = next(one for one in stand.orthanc.series() if one["SeriesInstanceUID"] == stand.hippocampus)
    assert stored["StudyInstanceUID"] == source["StudyInstanceUID"]
    (file,) = stand.orthanc.instances(stored["SeriesInstanceUID"])
    assert [one.SegmentLabel for one in pydicom.dcmread(io.BytesIO(file)).SegmentSequence] == ["anomalies"]
    listed = requests.get(f"{stand.server.url}/datastore/?output=all", timeout=30).json()["objects"]
    assert set(listed) == {stand.hippocampus, stand.head}  # no SEG
    # MONAI Label keeps the server's answers for a minute
    assert wait_until(lambda: stand.server.client.info()["datastore"]["completed"] == 1, 90)
    assert stand.server.client.info()["datastore"]["total"] == 2


def test_no_patient_is_named_in_the_output(stand):
    answer = stand.infer("diffae_anomaly", stand.head, "json")  # of another anatomy, with thick slices
    assert 0 < answer.json()["p_value"] <= 1
    output = stand.server.output.read_text() + (stand.server.output.with_suffix("") / "logs" / "app.log").read_text()
    assert "serving at" in output
    assert not [word for word in ("Dumbledore", "Albus", stand.head) if word in output]
