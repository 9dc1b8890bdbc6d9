"""The app ``monaibundle`` of MONAI Label, as installed, serves and trains our bundles without any change."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

pytest.importorskip("monailabel", reason="MONAI Label is not installed; make test-label runs these tests")

TINY = {
    "base_channels": 8, "channel_mult": [1, 2], "z_channels": 8, "network_def#unet#time_embed_channels": 16,
    "inferer#steps": 5, "max_epochs": 2, "batch_size": 4, "val_batch_size": 4, "num_pictures": 0, "mlflow": False,
    "device": "cpu",
}  # fmt: skip
EXTENSIONS = ["*.nii.gz", "*.nii", "*.nrrd", "*.mha", "*.jpg", "*.jpeg", "*.png", "*.dcm"]


def ball(shape: tuple[int, ...], center: float = 0.4) -> np.ndarray:
    """An image without any symmetry: a ball on a ramp, from 0 to 255."""
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij"))
    distance = np.sqrt(((grid - center) ** 2 * np.arange(1, len(shape) + 1).reshape(-1, *[1] * len(shape))).sum(axis=0))
    image = 100 * grid[0] + 30 * grid[-1] + 125 * (distance < 0.3)
    return np.asarray(255 * image / image.max()).astype(np.uint8)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of one grid that is neither isotropic nor in RAS order, as NIfTI, NRRD and MHA."""
    folder = tmp_path_factory.mktemp("volumes")
    affine = np.array([[0, 0, 2.5, -11], [-1.5, 0, 0, 40], [0, 2.0, 0, -7], [0, 0, 0, 1.0]])
    for i in range(6):
        image = nib.Nifti1Image(ball((21, 18, 14), 0.35 + 0.03 * i).astype(np.int16) * 3, affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / f"scan-{i}.nii.gz")
    source = sitk.ReadImage(str(folder / "scan-0.nii.gz"))
    sitk.WriteImage(source, str(folder / "nrrd-0.nrrd"))
    sitk.WriteImage(source, str(folder / "mha-0.mha"))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that are wider than high: PNG of 8 and 16 bits, and JPEG."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        pixels = ball((22, 30), 0.35 + 0.03 * i)
        Image.fromarray(pixels).save(folder / f"picture-{i}.png")
    Image.fromarray(pixels).save(folder / "xray-0.jpeg", quality=95)
    Image.fromarray(pixels.astype(np.uint16) * 100).save(folder / "deep-0.png")
    return folder


def trained(folder: Path, name: str, cohort: Path, **settings: Any) -> Path:
    """A small bundle, trained with sizes that its train.json does not have."""
    from monai_diffae.apps.training.train import train
    from monai_diffae.bundle.folders import init_bundle

    bundle = init_bundle(folder / name, name)
    train(bundle, cohort, overrides={**TINY, **settings})
    return bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, volumes: Path, pictures: Path) -> Path:
    """A folder with a trained 2D and a trained 3D bundle."""
    folder = tmp_path_factory.mktemp("bundles")
    trained(folder, "diffae_2d", pictures, image_size=[16, 16])
    trained(folder, "diffae_3d", volumes, image_size=[16, 16, 16], spacing_mm=[3.0, 3.0, 3.0])
    return folder


@pytest.fixture
def serve(tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts the stock app with a copy of both bundles and of a folder of scans, and returns a client."""
    from fastapi.testclient import TestClient
    from monailabel.app import app
    from monailabel.config import settings
    from monailabel.interfaces.utils.app import clear_cache

    folder = tmp_path / "monaibundle"
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", folder)
    shutil.copytree(bundles, folder / "model")
    clients = []

    def start(scans: Path, **values: Any) -> TestClient:
        studies = shutil.copytree(scans, tmp_path / "studies")
        conf = {"models": "diffae_2d,diffae_3d", "zoo_source": "local", "sam2": "false"}
        quiet = {"AUTO_UPDATE_SCORING": False, "DATASTORE_AUTO_RELOAD": False, "SESSIONS": False}
        given = {"APP_DIR": str(folder), "STUDIES": str(studies), "APP_CONF": conf, "DATASTORE_FILE_EXT": EXTENSIONS}
        for name, value in {**quiet, **given, **values}.items():
            monkeypatch.setattr(settings, f"MONAI_LABEL_{name}", value)
        clear_cache()
        clients.append(TestClient(app))
        return clients[-1].__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)
    clear_cache()


def infer(client: Any, model: str, image: str, **params: Any) -> bytes:
    answer = client.post(
        f"/infer/{model}?image={image}&output=image", data={"params": json.dumps({"device": "cpu", **params})}
    )
    assert answer.status_code == 200, answer.text
    content: bytes = answer.content
    return content


def as_nifti(content: bytes, folder: Path) -> Any:
    (folder / "answer.nii.gz").write_bytes(content)
    return nib.load(folder / "answer.nii.gz")


def test_volumes_come_back_in_the_scans_own_grid(serve: Any, volumes: Path, tmp_path: Path) -> None:
    client = serve(volumes)
    source = nib.load(volumes / "scan-1.nii.gz")
    answer = as_nifti(infer(client, "diffae_3d", "scan-1"), tmp_path)
    assert answer.shape == source.shape
    np.testing.assert_array_equal(answer.affine, source.affine)
    assert correlation(answer.get_fdata(), source.get_fdata()) > 0.9


def test_pictures_come_back_upright(serve: Any, pictures: Path) -> None:
    client = serve(pictures)
    for name in ("picture-1.png", "deep-0.png", "xray-0.jpeg"):
        source = Image.open(pictures / name)
        answer = Image.open(io.BytesIO(infer(client, "diffae_2d", Path(name).stem)))
        assert (answer.size, answer.mode, answer.format) == (source.size, source.mode, source.format)
        assert correlation(np.asarray(answer), np.asarray(source)) > 0.9
