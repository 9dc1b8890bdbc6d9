"""The shipped bundles with weights: complete after ``init``, the same in MONAI's tools, small, and without cases."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from golden_bundles import difference_from_stored, embed_golden_scans, write_golden_scans
from make_weights import LARGEST_FILE, make_weights
from monai.bundle import load

from monai_diffae import info, init, load_bundle
from monai_diffae.bundle import AnomalyDetector
from monai_diffae.bundle.model_file import checksum, read_description, read_model

ROOT = Path(__file__).parents[2]
NAMES = {"chest_xray": 2, "hippocampus": 3, "lung_nodules": 3}
EACH = pytest.mark.parametrize("name", NAMES)


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def made(tmp_path):
    """Makes a bundle with ``init``."""
    return lambda name: init(tmp_path / "my_model", bundle=name).folder


@EACH
def test_init_makes_a_complete_trained_bundle(made, name, tmp_path):
    bundle = made(name)
    stored = read_model(ROOT / "bundles" / name / "models" / "model.safetensors").tensors
    for workflow_type in ("train", "inference"):
        network = load(bundle.name, bundle_dir=bundle.parent, workflow_type=workflow_type, device="cpu")
        torch.testing.assert_close(dict(network.state_dict()), stored, rtol=0, atol=0, check_dtype=False)
    about = info(bundle)
    assert not about.own_code
    assert about.spatial_dims == NAMES[name]
    assert {path.name for path in (bundle / "configs" / "overlays").iterdir()} > {"fp32.json"}
    detector = AnomalyDetector.load(load_bundle(bundle, "cpu"))
    assert len(detector.scan_scores) == {"chest_xray": 134, "hippocampus": 20, "lung_nodules": 64}[name]
    assert read_description(bundle / "models" / "latent_model.safetensors")["autoencoder_sha256"] == checksum(bundle)
    assert list(init(tmp_path / "other", bundle=name).lines())[-1].startswith("next: monai-diffae embed ")


def test_no_file_is_too_large_or_a_pickle():
    listed = subprocess.run(["git", "ls-files", "bundles"], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.splitlines()}
    assert max(sizes.values()) <= LARGEST_FILE
    assert sum(sizes.values()) < 60_000_000  # the wheel stays below 60 MB: weights hardly become smaller in it
    suffixes = {Path(name).suffix for name in sizes}
    assert suffixes <= {"", ".json", ".md", ".txt", ".safetensors", ".conf"}


@EACH
def test_only_what_differs_is_stored_and_nothing_of_cases(name):
    folder = ROOT / "bundles" / name
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    needed = {"docs/README.md", "docs/data_license.txt", "configs/metadata.json", "configs/train.json"}
    models = {
        "model.safetensors",
        "metrics.json",
        "latent_model.safetensors",
        "anomaly.safetensors",
    }
    if name != "lung_nodules":  # of which wide features predict no better than z_sem
        models.add("wide.safetensors")
    assert files == needed | {f"models/{file}" for file in models}
    description = read_description(folder / "models" / "model.safetensors")
    assert not {"columns", "patient_pattern", "dataset_dir", "data"} & description.keys()
    for path in (folder / file for file in files if file.endswith(".json")):
        assert not [text for text in ("/work", "/home", "/tmp", "/root", "\\\\") if text in path.read_text()]


@EACH
def test_the_documents_name_data_licence_and_forbidden_uses(name):
    folder = ROOT / "bundles" / name / "docs"
    licence = {"chest_xray": "CC BY 4.0", "hippocampus": "CC BY-SA 4.0", "lung_nodules": "CC BY 3.0"}[name]
    sources = {
        "chest_xray": "10.17632/rscbjbr9sj",
        "hippocampus": "1902.09063",
        "lung_nodules": "K9/TCIA.2015.LO9QL9SX",
    }
    for text in (" ".join((folder / file).read_text().split()) for file in ("README.md", "data_license.txt")):
        assert licence in text
        assert sources[name] in text
    assert "- **Unintended use**: Diagnosis" in (folder / "README.md").read_text()


@EACH
def test_z_sem_of_formulas_is_the_stored_one(made, name, tmp_path):
    """To 1e-4 of the standard deviation of z_sem, since other processors round differently."""
    bundle, scans = made(name), write_golden_scans(tmp_path / "scans", NAMES[name])
    form = read(bundle / "configs" / "metadata.json")["network_data_format"]
    assert (
        form["inputs"]["image"]["spatial_shape"]
        == read_description(bundle / "models" / "model.safetensors")["image_size"]
    )
    table = embed_golden_scans(bundle, scans, tmp_path / "out")
    assert difference_from_stored(ROOT / "tests" / "weights" / name, table) <= 1e-4


# -- the program that stores them (make weights) ----------------------------------------------------------------------


@pytest.fixture
def bundles(tmp_path):
    """The documents of a shipped bundle, as they are written by hand."""
    folder = tmp_path / "bundles"
    shutil.copytree(ROOT / "bundles" / "chest_xray", folder / "chest_xray", ignore=shutil.ignore_patterns("models"))
    metadata = folder / "chest_xray" / "configs" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "eval_metrics": {}}))
    rows = "| auroc | FIGURE_auroc | FIGURE_auroc_interval | of a probe |\nFIGURE_hours hours: FIGURE_epochs epochs\n"
    (folder / "chest_xray" / "docs" / "README.md").write_text(rows)
    return folder


def test_weights_and_figures_are_written_and_nothing_of_the_training_s_data(latent_bundle, bundles):
    figures = {"auroc": [0.98765, 0.97, 1.0], "hours": "2.5"}
    assert make_weights(latent_bundle, "chest_xray", figures, bundles=bundles) == []
    target = bundles / "chest_xray"
    for name in ("model", "latent_model"):
        before, after = (read_model(folder / "models" / f"{name}.safetensors") for folder in (latent_bundle, target))
        torch.testing.assert_close(after.tensors, before.tensors, rtol=1e-3, atol=1e-7, check_dtype=False)
        assert "data" not in after.description
    assert after.description["autoencoder_sha256"] == checksum(target)
    assert len(AnomalyDetector.load(load_bundle(target, "cpu")).scores) > 1
    readme = (target / "docs" / "README.md").read_text()
    assert "| auroc | 0.9877 | 0.97 to 1 | of a probe |" in readme
    assert "2.5 hours: 1 epochs" in readme
    metadata = json.loads((target / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"] == {"auroc": 0.98765}
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [16, 16]
    assert sorted(path.name for path in (target / "models").iterdir() if path.name[0] != ".") == [
        "anomaly.safetensors", "latent_model.safetensors", "metrics.json", "model.safetensors",
    ]  # fmt: skip
