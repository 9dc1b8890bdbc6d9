"""``diffae_anomaly_map`` and ``diffae_anomaly`` on real scans."""

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

import SimpleITK as sitk
from label_scans import Studies

from monai_diffae import load_bundle
from monai_diffae.bundle.anomaly import AnomalyDetector
from monai_diffae.data.scans import read_scan


def calibrated(server) -> AnomalyDetector:
    return AnomalyDetector.load(load_bundle(server.app.folder.bundle, "cpu"))


def test_maps_are_floats_in_the_space_of_the_scan(serve, bundle_3d, studies_3d, tmp_path):
    server = serve(bundle_3d, studies_3d)
    detector = calibrated(server)
    for id, source in studies_3d.source.items():
        response = server.infer("diffae_anomaly_map", id, "image")
        assert response.status_code == 200, response.text
        (tmp_path / "map.nii.gz").write_bytes(response.content)
        image, scan = nib.load(tmp_path / "map.nii.gz"), read_scan(source)
        assert image.shape == scan.array.shape[1:]
        np.testing.assert_array_equal(image.affine, scan.affine)
        assert image.get_data_dtype() == np.float32
        case = detector_case(server, source)
        np.testing.assert_allclose(image.get_fdata(), case.back_map(detector(case).map)[0], rtol=1e-5, atol=1e-5)
        figures = server.infer("diffae_anomaly_map", id).json()
        assert figures["score"] == pytest.approx(detector(case).score)
        assert 0 < figures["p_value"] <= 1


def detector_case(server, source):
    return load_bundle(server.app.folder.bundle, "cpu").open(source)


def test_masks_are_label_maps_as_viewers_ask_for_them(serve, bundle_3d, studies_3d, tmp_path):
    server = serve(bundle_3d, studies_3d)
    asked = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
    sizes = []
    for quantile in (0.5, 0.9, 0.99):
        response = server.infer("diffae_anomaly", "series-1", "image", quantile=quantile, **asked)
        assert response.status_code == 200, response.text
        (tmp_path / "mask.nrrd").write_bytes(response.content)
        image = sitk.ReadImage(str(tmp_path / "mask.nrrd"))
        assert image.GetSize() == read_scan(studies_3d.source["series-1"]).array.shape[1:]
        assert image.GetPixelIDTypeAsString() == "8-bit unsigned integer"
        values = sitk.GetArrayFromImage(image)
        assert set(np.unique(values)) <= {0, 1}
        sizes.append(int(values.sum()))
    assert sizes[0] > sizes[1] > sizes[2] >= 0
    for quantile in (-0.1, 1.1, "x"):
        assert server.infer("diffae_anomaly", "series-1", quantile=quantile).status_code == 400


def test_pictures_have_masks_as_png_and_maps_as_floats_only(serve, bundle_2d, studies_2d: Studies):
    server = serve(bundle_2d, studies_2d)
    id = next(iter(studies_2d.source))
    mask = server.infer("diffae_anomaly", id, "image", result_extension=".png")
    assert (mask.status_code, mask.headers["content-type"]) == (200, "image/png")
    assert server.infer("diffae_anomaly_map", id, "image", result_extension=".png").status_code == 400
    assert server.infer("diffae_anomaly_map", id, "image", result_extension=".nrrd").status_code == 200


def test_a_bundle_that_is_not_calibrated_says_what_to_do(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    file = server.app.folder.bundle / "models" / "anomaly.pt"
    content = file.read_bytes()
    file.unlink()
    refused = server.infer("diffae_anomaly", "series-1")
    assert refused.status_code == 400
    assert "run monai-diffae calibrate app-0/bundle COHORT" in refused.json()["detail"]
    file.write_bytes(content)  # the server need not be started again
    assert server.infer("diffae_anomaly", "series-1").status_code == 200
