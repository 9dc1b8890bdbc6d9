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


def opened(content: bytes, file: Path) -> Any:
    """The image of an answer, read with nibabel."""
    file.write_bytes(content)
    if file.name.endswith(".nii.gz"):
        return nib.load(file)
    sitk.WriteImage(sitk.ReadImage(str(file)), str(file.with_suffix(".nii.gz")))
    return nib.load(file.with_suffix(".nii.gz"))


def shared(name: str) -> Path:
    """A folder of real scans; the test is skipped where it is not."""
    folder = Path(__file__).parents[3] / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip(f"the real scans {name} are not on this machine")
    return folder


def copied(files: list[Path], folder: Path) -> Path:
    """A folder with these files; without it, the app would write into that of the originals."""
    folder.mkdir()
    for file in files:
        shutil.copy(file, folder)
    return folder


# -- what the app says about our bundles ------------------------------------------------------------------------------


def test_every_kind_of_file_is_listed_and_both_bundles_are_served(serve: Any, pictures: Path, volumes: Path) -> None:
    for file in volumes.iterdir():
        shutil.copy(file, pictures)
    client = serve(pictures)
    names = {file.name.partition(".")[0] for file in pictures.iterdir()}
    for file in volumes.iterdir():
        (pictures / file.name).unlink()
    info = client.get("/info/").json()
    assert set(client.get("/datastore/?output=all").json()["objects"]) == names
    assert info["models"].keys() == info["trainers"].keys() == {"diffae_2d", "diffae_3d"}
    for name, dimension in (("diffae_2d", 2), ("diffae_3d", 3)):
        model = info["models"][name]
        assert model["dimension"] == dimension
        assert model["labels"] == {}  # the answer is an image, not a label map
        assert "returns the reconstruction, not a segmentation" in model["description"]


# -- inference: each of these failed before ---------------------------------------------------------------------------


def test_volumes_come_back_in_the_scan_s_own_grid(serve: Any, volumes: Path, tmp_path: Path) -> None:
    client = serve(volumes)
    source = nib.load(volumes / "scan-0.nii.gz")
    for name, suffix in (("scan-0", ".nii.gz"), ("nrrd-0", ".nrrd"), ("mha-0", ".mha")):
        answer = opened(infer(client, "diffae_3d", name), tmp_path / f"{name}{suffix}")
        assert answer.shape == source.shape
        np.testing.assert_array_equal(answer.affine, source.affine)
        assert answer.get_data_dtype() == np.float32
        assert correlation(answer.get_fdata(), source.get_fdata()) > 0.9
        assert abs(answer.get_fdata() - source.get_fdata()).mean() < 0.1 * np.ptp(source.get_fdata())  # in its units
    asked = infer(client, "diffae_3d", "scan-0", result_extension=".nrrd", result_dtype="uint8")  # as 3D Slicer asks
    assert opened(asked, tmp_path / "asked.nrrd").shape == source.shape


@pytest.mark.slow
def test_the_app_writes_what_reconstruct_writes(serve: Any, volumes: Path, bundles: Path, tmp_path: Path) -> None:
    from monai_diffae.apps.synthesis.reconstruct import reconstruct

    client = serve(volumes)
    reconstruct(bundles / "diffae_3d", volumes, tmp_path / "ours", cases=["scan-1"], device="cpu")
    ours = nib.load(tmp_path / "ours" / "x_T" / "scan-1.nii.gz")
    answer = opened(infer(client, "diffae_3d", "scan-1"), tmp_path / "answer.nii.gz")
    np.testing.assert_array_equal(np.round(answer.get_fdata()), ours.get_fdata())


def test_pictures_come_back_upright(serve: Any, pictures: Path) -> None:
    client = serve(pictures)
    for name in ("picture-1.png", "deep-0.png", "xray-0.jpeg"):
        source = Image.open(pictures / name)
        answer = Image.open(io.BytesIO(infer(client, "diffae_2d", Path(name).stem)))
        assert (answer.size, answer.mode, answer.format) == (source.size, source.mode, source.format)
        assert correlation(np.asarray(answer), np.asarray(source)) > 0.9
        transposed = np.asarray(answer.resize(answer.size[::-1])).T
        assert correlation(transposed, np.asarray(source)) < 0.9


@pytest.mark.slow
def test_a_picture_as_nifti_has_two_axes(serve: Any, pictures: Path, tmp_path: Path) -> None:
    answer = infer(serve(pictures), "diffae_2d", "picture-1", result_extension=".nii.gz")
    assert opened(answer, tmp_path / "a.nii.gz").shape == (30, 22)


@pytest.mark.slow
def test_flat_scans_keep_their_place_in_space(serve: Any, pictures: Path, tmp_path: Path) -> None:
    """A slice as NIfTI lies where the source lies, whichever axis comes first."""
    affine = np.array([[0, 0, 2.5, -11], [-1.5, 0, 0, 40], [0, 2.0, 0, -7], [0, 0, 0, 1.0]])
    flat = tmp_path / "flat"
    flat.mkdir()
    source = nib.Nifti1Image(ball((22, 30)).astype(np.float32)[..., None], affine)
    nib.save(source, flat / "flat-0.nii.gz")
    answer = opened(infer(serve(flat), "diffae_2d", "flat-0"), tmp_path / "answer.nii.gz")
    from nibabel.processing import resample_from_to

    there = resample_from_to(answer, source, order=1)
    assert correlation(there.get_fdata(), source.get_fdata()) > 0.9


@pytest.mark.slow
def test_real_hippocampi(serve: Any, tmp_path: Path) -> None:
    files = sorted(shared("hippocampus_msd/images").glob("*.nii.gz"))[:2]
    client = serve(copied(files, tmp_path / "scans"))
    for file in files:
        source = nib.load(file)
        answer = opened(infer(client, "diffae_3d", file.name.partition(".")[0]), tmp_path / file.name)
        assert answer.shape == source.shape
        np.testing.assert_array_equal(answer.affine, source.affine)
        assert correlation(answer.get_fdata(), source.get_fdata()) > 0.8


@pytest.mark.slow
def test_real_xrays(serve: Any, tmp_path: Path) -> None:
    files = sorted(shared("cxr_pneumonia_224").rglob("*.jpeg"))[:2]
    client = serve(copied(files, tmp_path / "scans"))
    for file in files:
        source = Image.open(file).convert("L")
        answer = Image.open(io.BytesIO(infer(client, "diffae_2d", file.stem)))
        assert answer.size == source.size
        assert correlation(np.asarray(answer), np.asarray(source)) > 0.8


@pytest.mark.slow
def test_a_real_dicom_series(serve: Any, volumes: Path, tmp_path: Path) -> None:
    from monai_diffae.data.scans import read_scan

    series = shared("hippocampus_hcrop_dicom/Study2_14_HCropVolume")
    answer = infer(serve(volumes), "diffae_3d", str(series), result_extension=".nii.gz")
    image, scan = opened(answer, tmp_path / "a.nii.gz"), read_scan(series)
    assert image.shape == scan.array.shape[1:]
    np.testing.assert_allclose(image.affine, scan.affine, atol=1e-5)
    assert correlation(image.get_fdata(), scan.array[0]) > 0.8


@pytest.mark.slow
def test_colour_is_refused_rather_than_written_wrongly(serve: Any, bundles: Path, tmp_path: Path) -> None:
    import torch
    from monai.bundle import ConfigParser

    from monai_diffae.bundle.described_model import describe_model

    colour = tmp_path / "scans"
    colour.mkdir()
    Image.fromarray(np.stack([ball((22, 30), c) for c in (0.3, 0.5, 0.7)], axis=-1)).save(colour / "colour-0.png")
    bundle = tmp_path / "monaibundle" / "model" / "diffae_2d"
    config = json.loads((bundle / "models" / "config.json").read_text()) | {"in_channels": 3}
    (bundle / "models" / "config.json").write_text(json.dumps(config))
    torch.save(ConfigParser(config).get_parsed_content("network_def").state_dict(), bundle / "models" / "model.pt")
    describe_model(bundle)
    with pytest.raises(Exception, match="pred: has 3 channels"):
        infer(serve(colour), "diffae_2d", "colour-0")


@pytest.mark.slow
def test_a_file_without_the_model_is_refused_rather_than_answered_from_random_weights(
    serve: Any, volumes: Path
) -> None:
    client = serve(volumes)
    assert client.get("/info/").json()["models"]["diffae_3d"]["config"]["model_filename"][0] == "model.pt"
    with pytest.raises(Exception, match="holds no weights of this network"):
        infer(client, "diffae_3d", "scan-0", model_filename="checkpoint.pt")


# -- training ---------------------------------------------------------------------------------------------------------


def label(client: Any, volumes: Path, names: list[str]) -> None:
    """Store a label for these scans: MONAI Label trains on labelled images only."""
    for name in names:
        source = nib.load(volumes / f"{name}.nii.gz")
        mask = nib.Nifti1Image((source.get_fdata() > 200).astype(np.uint8), source.affine)
        answer = client.put(
            f"/datastore/label?image={name}&tag=final",
            files={"label": (f"{name}.nii.gz", mask.to_bytes(), "application/octet-stream")},
        )
        assert answer.status_code == 200, answer.text


def train(client: Any, model: str, **params: Any) -> Any:
    """Train in this process."""
    given = {"device": "cpu", "max_epochs": 1, **params}
    return client.post(f"/train/{model}?run_sync=true", json={model: given, **given})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The copy of the 3D bundle that the app serves."""
    return tmp_path / "monaibundle" / "model" / "diffae_3d"


def weights(bundle: Path) -> dict[str, Any]:
    import torch

    state: dict[str, Any] = torch.load(bundle / "models" / "model.pt", weights_only=True)
    return state


def fingerprint(bundle: Path) -> str:
    text: str = json.loads((bundle / "models" / "config.json").read_text())["_meta_"]["data_fingerprint"]
    return text


@pytest.mark.slow
def test_it_trains_further_on_the_labelled_images_and_serves_the_new_weights(
    serve: Any, volumes: Path, bundle: Path, tmp_path: Path
) -> None:
    from monai_diffae.data import split_cohort

    client = serve(volumes)
    studies = tmp_path / "studies"
    label(client, volumes, [f"scan-{i}" for i in range(5)])
    before, answer_before = weights(bundle), infer(client, "diffae_3d", "scan-1")
    answer = train(client, "diffae_3d", max_epochs=2, val_split=0.2)
    assert answer.status_code == 200, answer.text
    after = weights(bundle)
    changes = [float((after[name] - before[name]).abs().max()) for name in before if before[name].is_floating_point()]
    assert 0 < max(changes) < 0.02  # further, not anew: two steps at a learning rate of at most 0.001
    splits = {"training": [], "validation": []}
    for i in range(5):
        splits["validation" if i == 4 else "training"].append(str(studies / f"scan-{i}.nii.gz"))
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "same.json").write_text(json.dumps(splits))
    assert fingerprint(bundle) == split_cohort(tmp_path / "list" / "same.json", spatial_dims=3).fingerprint
    assert json.loads((bundle / "configs" / "inference.json").read_text())["image_size"] == [16, 16, 16]
    assert infer(client, "diffae_3d", "scan-1") != answer_before
    first = fingerprint(bundle)
    label(client, volumes, ["scan-5"])
    assert train(client, "diffae_3d").status_code == 200  # more images are no other data
    assert fingerprint(bundle) != first
    source = nib.load(volumes / "scan-1.nii.gz")
    answer = opened(infer(client, "diffae_3d", "scan-1"), tmp_path / "after.nii.gz")
    assert correlation(answer.get_fdata(), source.get_fdata()) > 0.9


@pytest.mark.slow
def test_a_training_without_images_is_refused_with_the_reason(serve: Any, volumes: Path, bundle: Path) -> None:
    from monai_diffae.errors import one_line

    client = serve(volumes)
    before = (bundle / "models" / "model.pt").read_bytes()
    for labelled, split, reason in (
        ([], 0.2, "train#dataset#data: there is no image; in MONAI Label, label more images"),
        (["scan-0", "scan-1"], 0, "validate#dataset#data: there is no image"),
        ([], -1, "validate#dataset#data: must be a list, because train#dataset#data is one"),
    ):
        label(client, volumes, labelled)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
            train(client, "diffae_3d", val_split=split)
        assert reason in one_line(caught.value)
    assert (bundle / "models" / "model.pt").read_bytes() == before
