"""The shipped bundles with weights: complete after ``init``, the same in MONAI's tools, small, and without cases."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from golden_bundles import difference_from_stored, write_golden_scans
from make_weights import LARGEST_FILE
from monai.bundle import load

from monai_diffae import embed, info, init, load_bundle
from monai_diffae.bundle import AnomalyDetector
from monai_diffae.bundle.model_file import checksum, read_description, read_model

ROOT = Path(__file__).parents[2]
NAMES = {"chest_xray": 2, "hippocampus": 3}
BOTH = pytest.mark.parametrize("name", NAMES)


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def made(tmp_path):
    """Makes a bundle with ``init``."""
    return lambda name: init(tmp_path / "my_model", bundle=name).folder


@BOTH
def test_init_makes_a_complete_trained_bundle(made, name, tmp_path):
    bundle = made(name)
    stored = read_model(ROOT / "bundles" / name / "models" / "model.safetensors").tensors
    for workflow_type in ("train", "inference"):
        network = load(bundle.name, bundle_dir=bundle.parent, workflow_type=workflow_type, device="cpu")
        state = network.state_dict()
        assert state.keys() == stored.keys()
        assert [key for key in state if not torch.equal(state[key], stored[key])] == []
    about = info(bundle)
    assert not about.own_code
    assert about.spatial_dims == NAMES[name]
    assert {path.name for path in (bundle / "configs" / "overlays").iterdir()} > {"fp32.json"}
    detector = AnomalyDetector.load(load_bundle(bundle, "cpu"))
    assert len(detector.scan_scores) == {"chest_xray": 133, "hippocampus": 20}[name]
    assert read_description(bundle / "models" / "latent_model.safetensors")["autoencoder_sha256"] == checksum(bundle)
    assert list(init(tmp_path / "other", bundle=name).lines())[-1].startswith("next: monai-diffae embed ")


def test_no_file_is_too_large_or_a_pickle():
    listed = subprocess.run(["git", "ls-files", "bundles"], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.splitlines()}
    assert max(sizes.values()) <= LARGEST_FILE
    assert sum(sizes.values()) < 60_000_000  # the wheel stays below 60 MB: weights hardly become smaller in it
    suffixes = {Path(name).suffix for name in sizes}
    assert suffixes <= {"", ".json", ".md", ".txt", ".safetensors", ".conf"}


@BOTH
def test_only_what_differs_is_stored_and_nothing_of_cases(name):
    folder = ROOT / "bundles" / name
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    needed = {"docs/README.md", "docs/data_license.txt", "configs/metadata.json"}
    models = {
        "model.safetensors",
        "metrics.json",
        "latent_model.safetensors",
        "anomaly.safetensors",
        "wide.safetensors",
    }
    assert files == needed | {f"models/{file}" for file in models}
    description = read_description(folder / "models" / "model.safetensors")
    assert not {"columns", "patient_pattern", "dataset_dir", "data"} & description.keys()
    for path in (folder / file for file in files if file.endswith(".json")):
        assert not [text for text in ("/work", "/home", "/tmp", "/root", "\\\\") if text in path.read_text()]


@BOTH
def test_the_documents_name_data_licence_and_forbidden_uses(name):
    folder = ROOT / "bundles" / name / "docs"
    licence = {"chest_xray": "CC BY 4.0", "hippocampus": "CC BY-SA 4.0"}[name]
    source = {"chest_xray": "10.17632/rscbjbr9sj", "hippocampus": "1902.09063"}[name]
    for text in (" ".join((folder / file).read_text().split()) for file in ("README.md", "data_license.txt")):
        assert licence in text
        assert source in text
    assert "- **Unintended use**: Diagnosis" in (folder / "README.md").read_text()


@BOTH
def test_z_sem_of_formulas_is_the_stored_one(made, name, tmp_path):
    """To 1e-4 of the standard deviation of z_sem, since other processors round differently."""
    bundle, scans = made(name), write_golden_scans(tmp_path / "scans", NAMES[name])
    form = read(bundle / "configs" / "metadata.json")["network_data_format"]
    assert (
        form["inputs"]["image"]["spatial_shape"]
        == read_description(bundle / "models" / "model.safetensors")["image_size"]
    )
    table = embed(bundle, scans, tmp_path / "out", device="cpu").path
    assert difference_from_stored(ROOT / "tests" / "weights" / name, table) <= 1e-4
