"""The app ``monaibundle`` of MONAI Label, as installed, serves and trains our bundles without any change."""

import io
import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fastapi.testclient import TestClient
from label_scans import stored_bundle
from label_servers import same_settings
from nibabel.processing import resample_from_to
from PIL import Image

EXTENSIONS = ["*.nii.gz", "*.nii", "*.nrrd", "*.mha", "*.jpg", "*.jpeg", "*.png", "*.dcm"]


def ball(shape, center=0.4):
    """An image without any symmetry: a ball on a ramp, from 0 to 255."""
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij"))
    distance = np.sqrt(((grid - center) ** 2 * np.arange(1, len(shape) + 1).reshape(-1, *[1] * len(shape))).sum(axis=0))
    image = 100 * grid[0] + 30 * grid[-1] + 125 * (distance < 0.3)
    return np.asarray(255 * image / image.max()).astype(np.uint8)


def correlation(first, second):
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Volumes of one grid that is neither isotropic nor in RAS order, as NIfTI and NRRD, and wide pictures."""
    folder = tmp_path_factory.mktemp("scans")
    affine = np.array([[0, 0, 2.5, -11], [-1.5, 0, 0, 40], [0, 2.0, 0, -7], [0, 0, 0, 1.0]])
    for i in range(6):
        image = nib.Nifti1Image(ball((21, 18, 14), 0.35 + 0.03 * i).astype(np.int16) * 3, affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / f"scan-{i}.nii.gz")
    source = sitk.ReadImage(str(folder / "scan-0.nii.gz"))
    sitk.WriteImage(source, str(folder / "nrrd-0.nrrd"))
    pixels = ball((22, 30))
    Image.fromarray(pixels).save(folder / "picture-1.png")
    Image.fromarray(pixels).save(folder / "xray-0.jpeg", quality=95)
    Image.fromarray(pixels.astype(np.uint16) * 100).save(folder / "deep-0.png")
    nib.save(nib.Nifti1Image(pixels.astype(np.float32)[..., None], affine), folder / "flat-0.nii.gz")
    return folder


@contextmanager
def stock_app(folder, scans):
    """The stock app with a 2D and a 3D bundle."""
    from monailabel.app import app
    from monailabel.interfaces.utils.app import apps

    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", folder / "app")
    for kind in ("2d", "3d"):
        bundle = stored_bundle(folder / "app" / "model" / f"diffae_{kind}", kind)
        torch.save({"epoch": 1}, bundle / "models" / "checkpoint.pt")
    studies = shutil.copytree(scans, folder / "studies")
    values = {"APP_DIR": str(folder / "app"), "STUDIES": str(studies), "DATASTORE_FILE_EXT": EXTENSIONS,
              "APP_CONF": {"models": "diffae_2d,diffae_3d", "zoo_source": "local", "sam2": "false"},
              "AUTO_UPDATE_SCORING": False, "DATASTORE_AUTO_RELOAD": False, "SESSIONS": False}  # fmt: skip
    with same_settings() as settings:
        for name, value in values.items():
            setattr(settings, f"MONAI_LABEL_{name}", value)
        with TestClient(app) as client:
            yield client
        apps.clear()


@pytest.fixture(scope="module")
def client(tmp_path_factory, scans):
    with stock_app(tmp_path_factory.mktemp("stock"), scans) as client:
        yield client


def infer(client, model, image, **params):
    answer = client.post(
        f"/infer/{model}?image={image}&output=image", data={"params": json.dumps({"device": "cpu", **params})}
    )
    assert answer.status_code == 200, answer.text
    return answer.content


def opened(content, file):
    """The image of an answer, read with nibabel."""
    file.write_bytes(content)
    if file.name.endswith(".nii.gz"):
        return nib.load(file)
    sitk.WriteImage(sitk.ReadImage(str(file)), str(file.with_suffix(".nii.gz")))
    return nib.load(file.with_suffix(".nii.gz"))


def test_every_kind_of_file_is_listed_and_both_bundles_are_served(client, scans):
    info = client.get("/info/").json()
    names = {file.name.partition(".")[0] for file in scans.iterdir()}
    assert set(client.get("/datastore/?output=all").json()["objects"]) == names
    assert info["models"].keys() == info["trainers"].keys() == {"diffae_2d", "diffae_3d"}
    for name, dimension in (("diffae_2d", 2), ("diffae_3d", 3)):
        model = info["models"][name]
        assert model["dimension"] == dimension
        assert model["labels"] == {}  # the answer is an image, not a label map
        assert "returns the reconstruction, not a segmentation" in model["description"]


def test_volumes_come_back_in_the_scan_s_own_grid(client, scans, tmp_path):
    source = nib.load(scans / "scan-0.nii.gz")
    answer = opened(infer(client, "diffae_3d", "scan-0"), tmp_path / "answer.nii.gz")
    assert answer.shape == source.shape
    np.testing.assert_array_equal(answer.affine, source.affine)
    assert answer.get_data_dtype() == np.float32
    assert correlation(answer.get_fdata(), source.get_fdata()) > 0.9
    assert abs(answer.get_fdata() - source.get_fdata()).mean() < 0.1 * np.ptp(source.get_fdata())  # in its units
    asked = infer(client, "diffae_3d", "nrrd-0", result_extension=".nrrd", result_dtype="uint8")  # as 3D Slicer asks
    answer = opened(asked, tmp_path / "asked.nrrd")
    assert answer.shape == source.shape
    np.testing.assert_array_equal(answer.affine, source.affine)


def test_pictures_come_back_upright_and_slices_in_their_place(client, scans, tmp_path):
    for name in ("picture-1.png", "deep-0.png", "xray-0.jpeg"):
        source = Image.open(scans / name)
        answer = Image.open(io.BytesIO(infer(client, "diffae_2d", Path(name).stem)))
        assert (answer.size, answer.mode, answer.format) == (source.size, source.mode, source.format)
        assert correlation(np.asarray(answer), np.asarray(source)) > 0.9
        transposed = np.asarray(answer.resize(answer.size[::-1])).T
        assert correlation(transposed, np.asarray(source)) < 0.9
    source = nib.load(scans / "flat-0.nii.gz")  # it lies where the source lies, whichever axis comes first
    answer = opened(infer(client, "diffae_2d", "flat-0"), tmp_path / "flat.nii.gz")
    assert correlation(resample_from_to(answer, source, order=1).get_fdata(), source.get_fdata()) > 0.9
    answer = infer(client, "diffae_2d", "picture-1", result_extension=".nii.gz")
    assert opened(answer, tmp_path / "a.nii.gz").shape == (30, 22)


def test_a_file_without_the_model_is_refused_rather_than_answered_from_random_weights(client):
    assert client.get("/info/").json()["models"]["diffae_3d"]["config"]["model_filename"][0] == "model.pt"
    with pytest.raises(Exception, match="holds no weights of this network"):
        infer(client, "diffae_3d", "scan-0", model_filename="checkpoint.pt")
