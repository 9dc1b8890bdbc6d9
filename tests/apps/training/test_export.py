"""Networks as files: they give what the bundle's networks give, at other sizes too, and a description says how."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from tiny_bundles import tiny_kl

from monai_diffae import DiffusionAutoencoderInferer, DiffusionSchedule, embed, export, load_bundle
from monai_diffae.apps.training.export import TOLERANCE, _diffusion, write_network
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import OtherResultsError
from monai_diffae.networks import FirstStage, build_autoencoder
from monai_diffae.networks.network_parts import NetworkPart, autoencoder_parts, first_stage_parts

FORMATS = [pytest.param("pt2", marks=pytest.mark.slow), pytest.param("onnx", marks=pytest.mark.slow), "ts"]
GOLDEN = Path(__file__).parents[2] / "golden" / "0.1.0"


def needs_onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is in the extra `export`")


@pytest.fixture
def bundle(tmp_path):
    """A bundle of 16 x 16 images."""
    return shutil.copytree(GOLDEN / "2d", tmp_path / "bundle")


def parts(spatial_dims, shape, **arguments):
    torch.manual_seed(0)
    small = {"base_channels": 4, "channel_mult": (1, 2), "z_channels": 4, "time_embed_channels": 8}
    network = build_autoencoder(spatial_dims, **{**small, **arguments})
    for parameter in network.parameters():
        if not parameter.any():  # untrained, the denoiser predicts 0
            torch.nn.init.normal_(parameter, std=0.1)
    return autoencoder_parts(network.eval(), shape, None)


def small_first_stage():
    first_stage = FirstStage(tiny_kl(latent_channels=2), image_range=(-1.0, 1.0)).eval()
    first_stage.measure(torch.rand(2, 1, 8, 8, 8) * 2 - 1)
    return first_stage.requires_grad_(False)


def check(file):
    assert file.size_is_free
    assert file.difference <= TOLERANCE


def test_a_network_that_takes_a_single_size_is_said_to(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 8, stride=8), torch.nn.Flatten(), torch.nn.Linear(32, 3)).eval()
    part = NetworkPart("encoder", module, "image", 1, (32, 32), (4, 4), "z_sem")  # 36 x 36 gives 4 x 4 cells, too
    assert not write_network(part, "pt2", tmp_path).size_is_free


@pytest.mark.parametrize("format", FORMATS)
def test_no_file_names_folders_of_this_machine(tmp_path, format):
    if format == "onnx":
        needs_onnx()
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.SiLU(), torch.nn.Flatten()).eval()
    write_network(NetworkPart("encoder", module, "image", 1, (8, 8), (1, 1), "z_sem"), format, tmp_path)
    path = tmp_path / f"encoder.{format}"
    contents = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
    folder = str(Path(torch.__file__).parent).encode()
    assert not any(folder in content or b"test_export.py" in content for content in contents)


@pytest.mark.slow
def test_files_give_what_the_bundle_gives_without_this_package(bundle, tmp_path):
    """In another process, which has no monai_diffae and no MONAI."""
    result = export(bundle, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "encoder.pt2", "denoiser.pt2", "networks.json", "record.json"
    }  # fmt: skip
    assert all(figures["largest_difference"] <= TOLERANCE for figures in result.networks.values())
    trained = load_bundle(bundle, "cpu")
    images = torch.rand(5, 1, 24, 32) * 2 - 1
    torch.save(images, tmp_path / "images.pt")
    code = f"""
import sys, torch
encoder = torch.export.load({str(tmp_path / "out" / "encoder.pt2")!r}).module()
denoiser = torch.export.load({str(tmp_path / "out" / "denoiser.pt2")!r}).module()
images = torch.load({str(tmp_path / "images.pt")!r}, weights_only=True)
z_sem = encoder(images)
torch.save([z_sem, denoiser(images, torch.full((5,), 300.0), z_sem)], {str(tmp_path / "outputs.pt")!r})
assert not {{"monai", "monai_diffae"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)
    z_sem, predicted = torch.load(tmp_path / "outputs.pt", weights_only=True)
    expected = trained.inferer.encode(images, trained.network)
    torch.testing.assert_close(z_sem, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        expected = trained.network(images, torch.full((5,), 300.0), z_sem)
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-5)


def test_the_description_says_how_the_files_are_used_and_a_complete_result_is_skipped(bundle, tmp_path):
    first = export(bundle, tmp_path / "out", format="ts")
    text = (tmp_path / "out" / "networks.json").read_text()
    assert str(tmp_path) not in text
    described = json.loads(text)
    trained = load_bundle(bundle, "cpu")
    assert described["made_from"]["model"] == trained.sha256
    assert described["images"]["image_size"] == [16, 16]
    assert described["images"]["model_range"] == [-1.0, 1.0]
    assert described["preprocessing"]["percentiles"] == [0.5, 99.5]
    divisors = trained.network.size_divisors
    encoder, denoiser = (described["networks"][f"{name}.ts"] for name in ("encoder", "denoiser"))
    sizes = [f"{divisors[0]}*height", f"{divisors[1]}*width"]
    assert encoder["inputs"] == {"image": ["batch", 1, *sizes]}
    assert encoder["output"] == {"z_sem": ["batch", 8]}
    assert encoder["sha256"] == file_checksum(tmp_path / "out" / "encoder.ts")
    assert denoiser["inputs"] == {"x_t": ["batch", 1, *sizes], "timesteps": ["batch"], "z_sem": ["batch", 8]}
    assert denoiser["output"] == {"prediction": ["batch", 1, *sizes]}
    again = export(bundle, tmp_path / "out", format="ts")
    assert again.skipped
    assert again.networks == first.networks
    with pytest.raises(OtherResultsError):
        export(bundle, tmp_path / "out")


@pytest.mark.parametrize(
    "arguments",
    [
        {"schedule": "rectified_flow", "prediction": "v"}, {"schedule": "cosine", "prediction": "v"},
        {"prediction": "eps"}, {"prediction": "x0"},
    ],
    ids=lambda arguments: "-".join(arguments.values()),
)  # fmt: skip
def test_the_formulas_of_the_description_are_those_of_the_schedule(arguments):
    schedule = DiffusionSchedule(**arguments)
    described, t = json.loads(json.dumps(_diffusion(DiffusionAutoencoderInferer(schedule)))), 400
    x0, eps = torch.rand(2, 1, 4, 4, dtype=torch.float64), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    times = torch.full((2,), t)
    values = {"alpha": described["alpha"], "sigma": described["sigma"], "t": t, "x0": x0, "eps": eps}
    values["x_t"] = eval(described["x_t"], values)
    torch.testing.assert_close(values["x_t"], schedule.q_sample(x0, eps, times))
    values["prediction"] = schedule.target(x0, eps, times)
    values["x0"] = eval(described["x0"], values)
    torch.testing.assert_close(values["x0"], x0)
    torch.testing.assert_close(eval(described["eps"], values), eps)
    clipped = DiffusionSchedule(clip_range=(-1.0, 1.0), **arguments)
    ranges = [_diffusion(DiffusionAutoencoderInferer(clipped, clip=clip))["clip_range"] for clip in (True, False)]
    assert ranges == [(-1.0, 1.0), None]


ORIENTATIONS = {"RAS": (3, 2, 2.5), "LIA": (1, 5, 0.8), "PSR": (1.3, 1, 4)}


@pytest.fixture
def documented(monkeypatch, tmp_path):
    """Runs the scripts of docs/export.md in a folder; ONNX Runtime is replaced by the same network as TorchScript."""
    text = (Path(__file__).parents[3] / "docs" / "export.md").read_text()
    scripts = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)

    class Session(SimpleNamespace):
        def run(self, _, inputs):
            return [torch.jit.load(self.path.replace("onnx", "ts"))(*map(torch.from_numpy, inputs.values())).numpy()]

    fake = SimpleNamespace(InferenceSession=lambda path: Session(path=path))
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)

    def run(index, old="", new=""):
        names = {}
        exec(scripts[index].replace(old, new), names)
        return names["z_sem"]

    return run


def save_volume(path, codes, spacing):
    """A smooth volume whose axes point to these directions."""
    orientation = nib.orientations.axcodes2ornt(tuple(codes))
    affine = np.eye(4)
    for axis, (ras_axis, sign) in enumerate(orientation):
        affine[:3, axis] = np.eye(3)[int(ras_axis)] * sign * spacing[axis]
    noise = np.random.default_rng(0).standard_normal((21, 14, 33))
    nib.save(nib.Nifti1Image(gaussian_filter(noise, 2).astype(np.float32), affine), path)


def test_a_volume_by_the_documentation_has_the_z_sem_of_embed(documented, tmp_path):
    export(GOLDEN / "3d", tmp_path / "exported", format="ts")
    described = json.loads((tmp_path / "exported" / "networks.json").read_text())["images"]["axes"]
    assert described == {"x": "left to right", "y": "posterior to anterior", "z": "inferior to superior"}
    (tmp_path / "scans").mkdir()
    for codes, spacing in ORIENTATIONS.items():
        save_volume(tmp_path / "scans" / f"{codes}.nii.gz", codes, spacing)
    table = pd.read_parquet(embed(GOLDEN / "3d", tmp_path / "scans", tmp_path / "embedded", device="cpu").path)
    expected = table.set_index("id").filter(regex=r"^z_\d")
    for codes in ORIENTATIONS:
        z_sem = documented(0, "scan.nii.gz", f"scans/{codes}.nii.gz")
        np.testing.assert_allclose(z_sem[0], expected.loc[codes], rtol=0, atol=1e-4)


def test_a_picture_and_a_slice_by_the_documentation_have_the_z_sem_of_embed(documented, bundle, tmp_path):
    export(bundle, tmp_path / "exported", format="ts")
    described = json.loads((tmp_path / "exported" / "networks.json").read_text())["images"]
    assert described["axes"] == {"height": "top to bottom", "width": "left to right"}
    assert described["slice_axes"] == {"height": "anterior to posterior", "width": "right to left"}
    pixels = gaussian_filter(np.random.default_rng(0).standard_normal((45, 61)), 2)
    Image.fromarray(np.uint8(128 + 100 * pixels / abs(pixels).max())).save(tmp_path / "scan.png")
    save_volume(tmp_path / "scan.nii.gz", "LIA", (1, 5, 0.8))
    trained = load_bundle(bundle, "cpu")
    z_sem = documented(1)
    np.testing.assert_allclose(z_sem, trained.open(tmp_path / "scan.png").z_sem, rtol=0, atol=1e-4)
    volume = nib.as_closest_canonical(nib.load(tmp_path / "scan.nii.gz")).get_fdata()
    np.save("plane.npy", volume[:, :, 4].T[::-1, ::-1])
    z_sem = documented(1, 'Image.open("scan.png").convert("L")', 'np.load("plane.npy")')
    expected = trained.open(tmp_path / "scan.nii.gz", slice=4).z_sem
    np.testing.assert_allclose(z_sem, expected, rtol=0, atol=1e-4)


NETWORKS = {
    "2d": (2, (1, 16, 24), {"z_grid": 3, "attention_levels": (1,)}),
    "3d": (3, (1, 8, 16, 6), {"z_grid": 2, "strides": [(2, 2, 1), (2, 2, 2)]}),
}


@pytest.mark.parametrize("index", [0, 1], ids=["encoder", "denoiser"])
@pytest.mark.parametrize("network", [pytest.param("2d", marks=pytest.mark.slow), "3d"])
@pytest.mark.parametrize("format", FORMATS)
def test_grids_that_do_not_divide_the_features_are_exported(network, format, index, tmp_path, monkeypatch):
    if format == "onnx":
        needs_onnx()
    monkeypatch.delattr(torch.jit, "trace")  # our networks are scripted
    spatial_dims, shape, arguments = NETWORKS[network]
    check(write_network(parts(spatial_dims, shape, **arguments)[index], format, tmp_path))


@pytest.mark.parametrize("index", [0, 1], ids=["encoder", "decoder"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_first_stage_is_exported(format, index, tmp_path):
    if format == "onnx":
        needs_onnx()
    first_stage = small_first_stage()
    part = first_stage_parts(first_stage, (8, 8, 12))[index]
    file = write_network(part, format, tmp_path)
    check(file)
    image = torch.rand(2, 1, 8, 8, 12) * 2 - 1
    inputs = image if index == 0 else first_stage.encode(image)
    expected = first_stage.encode(image) if index == 0 else first_stage.decode(inputs)
    torch.testing.assert_close(part.module(inputs), expected)
    assert file.output_shape == tuple(expected.shape[1:])
