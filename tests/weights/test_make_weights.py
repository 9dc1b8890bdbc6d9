"""The program that puts the weights of a trained bundle into ``bundles/``; tests/bundles tests what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import make_weights
import pytest
import torch

from monai_diffae.bundle import AnomalyDetector, checksum, load_bundle
from monai_diffae.bundle.model_file import read_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """The documents of a shipped bundle, as they are written by hand."""
    folder = tmp_path / "bundles"
    shutil.copytree(ROOT / "bundles" / "chest_xray", folder / "chest_xray", ignore=shutil.ignore_patterns("models"))
    metadata = folder / "chest_xray" / "configs" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "eval_metrics": {}}))
    rows = "| auroc | FIGURE_auroc | FIGURE_auroc_interval | of a probe |\nFIGURE_hours hours: FIGURE_epochs epochs\n"
    (folder / "chest_xray" / "docs" / "README.md").write_text(rows)
    return folder


def test_weights_and_figures_are_written_and_nothing_of_the_training_s_data(latent_bundle: Path, bundles: Path):
    figures = {"auroc": [0.98765, 0.97, 1.0], "hours": "2.5"}
    assert make_weights.make_weights(latent_bundle, "chest_xray", figures, bundles=bundles) == []
    target = bundles / "chest_xray"
    for name in ("model", "latent_model"):
        before, after = (read_model(folder / "models" / f"{name}.safetensors") for folder in (latent_bundle, target))
        assert before.tensors.keys() == after.tensors.keys()
        assert all(torch.equal(before.tensors[key], after.tensors[key]) for key in before.tensors)
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
