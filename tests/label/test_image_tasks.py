"""``diffae_reconstruct`` and ``diffae_edit`` on real scans: shape, affine and orientation are those of the source."""

import io
import json

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

import SimpleITK as sitk
from label_scans import direction_for
from PIL import Image

from monai_diffae.data.scans import read_scan
from monai_diffae.label.app_folder import AppFolder
from monai_diffae.label.image_tasks import direction_names


def nifti(response, tmp_path):
    path = tmp_path / "answer.nii.gz"
    path.write_bytes(response.content)
    return nib.load(path)


def test_a_volume_keeps_shape_and_affine_to_the_bit(serve, bundle_3d, studies_3d, tmp_path):
    server = serve(bundle_3d, studies_3d)
    for id, mode in (("hippocampus_001", "x_T"), ("series-1", "x_T"), ("hippocampus_003", "z_sem")):
        source = studies_3d.source[id]
        response = server.infer("diffae_reconstruct", id, "image", mode=mode)
        assert response.status_code == 200
        scan, answer = read_scan(source), nifti(response, tmp_path)
        assert answer.shape == scan.array.shape[1:]
        np.testing.assert_array_equal(answer.affine, scan.affine)
        assert answer.get_data_dtype() == np.float32
        assert np.isfinite(answer.get_fdata()).all()


def test_x_T_reconstructs_the_scan(serve, bundle_3d, studies_3d, tmp_path):
    server = serve(bundle_3d, studies_3d)
    errors = {mode: server.infer("diffae_reconstruct", "hippocampus_001", mode=mode).json()["mse"]
              for mode in ("z_sem", "x_T")}  # fmt: skip
    assert errors["x_T"] < 0.01 * errors["z_sem"]


def test_the_same_request_has_the_same_answer_and_another_seed_another(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    asked = ("diffae_reconstruct", "hippocampus_001", "image")
    answers = [server.infer(*asked, seed=seed, result_extension=".nii").content for seed in (0, 0, 1)]
    assert answers[0] == answers[1] != answers[2]


def test_a_picture_stays_upright(serve, bundle_2d, studies_2d):
    server = serve(bundle_2d, studies_2d)
    for id, source in list(studies_2d.source.items())[:2]:
        response = server.infer("diffae_reconstruct", id, "image", mode="x_T")
        assert response.headers["content-type"] == "image/png"
        answer = np.asarray(Image.open(io.BytesIO(response.content)), float)
        scan = read_scan(source).array[0]
        assert answer.shape == scan.shape
        correlation, transposed = (np.corrcoef(a.ravel(), scan.ravel())[0, 1] for a in (answer, answer.T))
        assert correlation > 0.8 > transposed


def test_slices_of_a_volume_become_a_volume_again(serve, bundle_2d, studies_3d, tmp_path):
    server = serve(bundle_2d, studies_3d)
    response = server.infer("diffae_reconstruct", "hippocampus_001", "image")
    scan, answer = read_scan(studies_3d.source["hippocampus_001"]), nifti(response, tmp_path)
    assert answer.shape == scan.array.shape[1:]
    np.testing.assert_array_equal(answer.affine, scan.affine)
    one = server.infer("diffae_reconstruct", "hippocampus_001", slice=10)
    assert one.status_code == 200
    assert server.infer("diffae_reconstruct", "hippocampus_001", slice=1000).status_code == 422
    assert server.infer("diffae_reconstruct", "hippocampus_001", slice=-1).status_code == 400


def test_nrrd_is_written_for_viewers(serve, bundle_3d, studies_3d, tmp_path):
    server = serve(bundle_3d, studies_3d)
    response = server.infer("diffae_reconstruct", "series-1", "image", result_extension=".nrrd")
    (tmp_path / "a.nrrd").write_bytes(response.content)
    scan = read_scan(studies_3d.source["series-1"])
    image = sitk.ReadImage(str(tmp_path / "a.nrrd"))
    assert image.GetSize() == scan.array.shape[1:]
    np.testing.assert_allclose(read_scan(tmp_path / "a.nrrd").affine, scan.affine, atol=1e-5)
    refused = server.infer("diffae_reconstruct", "series-1", "image", result_extension=".nrrd", result_dtype="uint8")
    assert (refused.status_code, refused.json()["detail"].partition(":")[0]) == (400, "result_dtype")


def test_an_edit_follows_a_stored_direction(serve, bundle_3d, studies_3d, tmp_path):
    server = serve(bundle_3d, studies_3d)
    folder = server.app.folder.directions
    refused = server.infer("diffae_edit", "hippocampus_001")
    assert refused.status_code == 400
    assert "fit-direction" in refused.json()["detail"]
    direction = direction_for(server.app.folder.bundle)
    (folder / "age.json").write_text(json.dumps(direction.to_json()))
    assert server.client.get("/info/").json()["models"]["diffae_edit"]["config"]["direction"] == ["age"]
    answers = {strength: server.infer("diffae_edit", "hippocampus_001", direction="age", strength=strength).json()
               for strength in (0, 2)}  # fmt: skip
    for strength, answer in answers.items():
        moved = np.subtract(answer["prediction"]["edited"], answer["prediction"]["scan"])
        np.testing.assert_allclose(moved, strength * direction.std * direction.slope, rtol=1e-4, atol=1e-4)
    image = nifti(server.infer("diffae_edit", "hippocampus_001", "image", strength=2), tmp_path)
    scan = read_scan(studies_3d.source["hippocampus_001"])
    assert image.shape == scan.array.shape[1:]
    np.testing.assert_array_equal(image.affine, scan.affine)
    unchanged, decoded = (
        nifti(server.infer("diffae_edit", "hippocampus_001", "image", strength=0, detail=detail), tmp_path).get_fdata()
        for detail in ("own", "model")
    )
    np.testing.assert_array_equal(unchanged, scan.array[0])
    assert (decoded != scan.array[0]).any()
    assert (image.get_fdata() != scan.array[0]).any()


def test_directions_outside_the_folder_and_of_other_models_are_refused(serve, bundle_3d, bundle_2d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    folder: AppFolder = server.app.folder
    (folder.directions / "other.json").write_text(json.dumps(direction_for(bundle_2d).to_json()))
    (folder.path / "secret.json").write_text(json.dumps(direction_for(folder.bundle).to_json()))
    assert direction_names(folder) == ["other"]
    for name in ("../secret", "/etc/passwd", "secret"):
        response = server.infer("diffae_edit", "hippocampus_001", direction=name)
        assert (response.status_code, response.json()["detail"][:11]) == (400, "direction: ")
    assert "another model" in server.infer("diffae_edit", "hippocampus_001", direction="other").json()["detail"]
