"""The app beside a real Orthanc, and in OHIF with a real browser: `make test-orthanc`.

MONAI Label's OHIF looks for its server at port 8000, so the tests take this port. `make test-orthanc` runs them in a
network namespace of their own, where it is free and nothing is reachable from outside.
"""

import io
import json
import socket
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scan_files import shared

pytest.importorskip("playwright", reason="playwright is not installed: make test-orthanc installs it")

import nibabel as nib
import pydicom
import requests
from forked_program import programs, wait_until
from label_servers import ServerProcess
from ohif_page import CHROMIUM, OhifPage, open_browser
from orthanc_server import Orthanc, missing_parts
from planted_lesion import ball, plant_lesion
from playwright.sync_api import sync_playwright

from monai_diffae import label_app, load_bundle
from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import init_bundle

missing = missing_parts() or ("" if CHROMIUM.exists() else "chromium")
REASON = f"needs Debian's {missing}: apt install orthanc orthanc-dicomweb chromium"
pytestmark = [pytest.mark.orthanc, pytest.mark.slow, pytest.mark.skipif(bool(missing), reason=REASON)]
ORTHANC_PORT, SERVER_PORT = 8042, 8000
BRIEF_TRAINING = {
    "image_size": [12, 16, 12], "spacing_mm": [3.0, 3.0, 3.0], "base_channels": 8, "channel_mult": [1, 2],
    "z_channels": 16, "network_def#unet#time_embed_channels": 16, "z_grid": 2,
    "max_epochs": 10, "batch_size": 8, "num_pictures": 0, "mlflow": False, "device": "cpu",
    "val_fraction": 0.3, "test_fraction": 0.1,
}  # fmt: skip
LABEL_INFO = [{"name": "anomalies", "idx": 1, "model_name": "diffae_anomaly"}]


@dataclass(frozen=True)
class Stand:
    """Orthanc, our server, and the series that Orthanc holds by their SeriesInstanceUIDs."""

    orthanc: Orthanc
    server: ServerProcess
    bundle: Path
    hippocampus: str
    head: str
    planted: str

    def infer(self, task, series, output, **params):
        """The answer of a task."""
        return requests.post(
            f"{self.server.url}/infer/{task}",
            params={"image": series, "output": output},
            data={"params": json.dumps(params)},
            timeout=120,
        )


@pytest.fixture(scope="module")
def calibrated_bundle(tmp_path_factory):
    """A bundle of hippocampi, trained for some seconds: enough to find a bright ball."""
    root = tmp_path_factory.mktemp("calibrated")
    files = sorted((shared("hippocampus_msd") / "images").glob("*.nii.gz"))[:40]
    (root / "cohort.csv").write_text("\n".join(["image", *map(str, files)]))
    bundle = init_bundle(root / "bundle", "diffae_3d")
    train(bundle, root / "cohort.csv", overrides=BRIEF_TRAINING)
    return bundle


@pytest.fixture(scope="module")
def stand(calibrated_bundle, tmp_path_factory):
    """Two real series, and a copy of one with a planted lesion, in Orthanc; our server beside it."""
    for port in (ORTHANC_PORT, SERVER_PORT):
        with socket.socket() as test:
            if test.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port} is in use; make test-orthanc runs in a network of its own")
    root = tmp_path_factory.mktemp("orthanc")
    hippocampus = shared("hippocampus_hcrop_dicom") / "Study1_13_HCropVolume"
    head = shared("dicom_mr_brain_pgbm003") / "11-T1post-18670"
    plant_lesion(hippocampus, root / "planted", radius_mm=6)
    label_app(root / "app", bundle=calibrated_bundle)
    orthanc = Orthanc(root / "orthanc", ORTHANC_PORT)
    with closing(orthanc), programs() as start:
        orthanc.wait()
        series = [orthanc.upload(folder) for folder in (hippocampus, head, root / "planted")]
        server = ServerProcess(start, root / "app", orthanc.dicom_web_url, SERVER_PORT, "--modality", "MR")
        yield Stand(orthanc, server, calibrated_bundle, *series)
        server.close()


def test_a_series_is_encoded_as_the_same_files_are_in_a_folder(stand):
    """MONAI Label converts the series to NIfTI; z_sem is that of our own reader all the same."""
    answer = stand.infer("diffae_encode", stand.hippocampus, "json")
    assert answer.status_code == 200, answer.text
    ours = load_bundle(stand.bundle, "cpu").open(shared("hippocampus_hcrop_dicom") / "Study1_13_HCropVolume").z_sem
    np.testing.assert_allclose(answer.json()["z_sem"], ours.numpy(), atol=1e-4)


def test_the_anomaly_mask_has_the_grid_of_the_series_and_covers_the_planted_lesion(stand, tmp_path):
    answer = stand.infer("diffae_anomaly", stand.planted, "image", result_extension=".nii.gz", quantile=0.9)
    assert answer.status_code == 200, answer.text
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    lesion = ball((32, 51, 35), [1.0, 1.0, 1.0], 6).T
    assert mask.shape == lesion.shape
    assert set(np.unique(mask)) == {0, 1}
    assert mask[lesion].mean() > 4 * mask[~lesion].mean()


def test_an_anomaly_mask_as_dicom_seg(stand):
    answer = stand.infer("diffae_anomaly", stand.planted, "dicom_seg", label_info=LABEL_INFO, quantile=0.9)
    assert answer.status_code == 200, answer.text
    segmentation = pydicom.dcmread(io.BytesIO(answer.content))
    assert segmentation.SOPClassUID == pydicom.uid.SegmentationStorage
    assert [one.SegmentLabel for one in segmentation.SegmentSequence] == ["anomalies"]
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == stand.planted
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
    assert set(listed) == {stand.hippocampus, stand.head, stand.planted}  # no SEG
    # MONAI Label keeps the server's answers for a minute
    assert wait_until(lambda: stand.server.client.info()["datastore"]["completed"] == 1, 90)
    assert stand.server.client.info()["datastore"]["total"] == 3


def test_no_patient_is_named_in_the_output(stand):
    answer = stand.infer("diffae_anomaly", stand.head, "json")  # of another anatomy, with thick slices
    assert 0 < answer.json()["p_value"] <= 1
    output = stand.server.output.read_text() + (stand.server.output.with_suffix("") / "logs" / "app.log").read_text()
    assert "serving at" in output
    assert not [word for word in ("Dumbledore", "Albus", stand.head) if word in output]


@pytest.fixture(scope="module")
def browser(stand):
    with sync_playwright() as playwright:
        browser = open_browser(playwright)
        yield browser
        browser.close()


@pytest.fixture
def ohif(browser, stand):
    series = next(one for one in stand.orthanc.series() if one["SeriesInstanceUID"] == stand.planted)
    return OhifPage(browser, stand.server.url, series["StudyInstanceUID"])


def test_ohif_draws_the_anomaly_on_the_planted_lesion(ohif, tmp_path):
    panel = ohif.connect()
    assert "MONAI Label - diffusion autoencoder" in panel
    assert ohif.segmentation_models() == ["diffae_anomaly"]
    assert {"diffae_diversity", "diffae_outlier", "diffae_uncertain", "diffae_mixed"} <= set(ohif.strategies())
    before = ohif.planes().astype(int)
    ohif.set_option("diffae_anomaly", "quantile", "0.9")
    ohif.run_segmentation()
    ohif.page.screenshot(path=tmp_path / "ohif.png")
    overlay = np.abs(ohif.planes() - before).max(axis=-1) > 8
    lesion = before.min(axis=-1) > 245  # the ball is the only white, with a little text
    anatomy = (before.max(axis=-1) - before.min(axis=-1) < 8) & (before.max(axis=-1) > 20) & ~lesion
    assert overlay[lesion].mean() > 0.3
    assert overlay[lesion].mean() > 2 * overlay[anatomy].mean()
