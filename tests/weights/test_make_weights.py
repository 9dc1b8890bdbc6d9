"""The program that puts the weights of a trained bundle into ``bundles/``; tests/bundles tests what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import make_weights
import pytest
import torch

from monai_diffae.bundle import AnomalyDetector, checksum, load_bundle
from monai_diffae.bundle.model_file import read_model, write_model

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


def test_figures_are_read_from_the_results_of_commands(tmp_path: Path):
    rows = [
        {"table": "reconstruction", "metric": "mse", "timestep": None, "features": None},
        {"table": "z_sem_only", "metric": "ssim", "timestep": None, "features": None},
        {"table": "z_sem", "metric": "z_sem_usage", "timestep": 50, "features": None},
        {"table": "z_sem", "metric": "z_sem_usage", "timestep": None, "features": None},
        {"table": "generation", "metric": "copying_ratio", "timestep": None, "features": "z_sem"},
        {"table": "generation", "metric": "copying_ratio", "timestep": None, "features": "alexnet"},
    ]
    numbered = [{**row, "value": i, "low": i - 0.5, "high": i + 0.5} for i, row in enumerate(rows)]
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": numbered}))
    (tmp_path / "probes.csv").write_text(
        "target,features,probe,metric,score,low,high\n"
        "label,z_sem,linear,auroc,0.9,0.8,0.95\n"
        "label,z_sem,knn,auroc,0.7,0.6,0.8\n"
        "label,PCA of pixels,linear,auroc,0.5,0.4,0.6\n"
        "label,intensity statistics,linear,auroc,0.4,0.3,0.6\n"
    )
    assert make_weights.measured_figures(tmp_path, tmp_path) == {
        "mse_x_T": [0, -0.5, 0.5], "ssim_z_sem": [1, 0.5, 1.5], "z_sem_usage": [3, 2.5, 3.5],
        "copying_ratio": [4, 3.5, 4.5], "label_auroc": [0.9, 0.8, 0.95], "label_auroc_pca": [0.5, 0.4, 0.6],
    }  # fmt: skip


def test_what_cannot_be_shipped_is_refused(
    latent_bundle: Path, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(SystemExit, match="loss: docs/README.md of chest_xray has no row for this figure"):
        make_weights.make_weights(latent_bundle, "chest_xray", {"loss": 1.0}, bundles=bundles)
    own = Path(shutil.copytree(latent_bundle, tmp_path / "own", ignore=shutil.ignore_patterns("cache")))
    file = own / "models" / "model.safetensors"
    model = read_model(file)
    code = {"_target_": "os.system", "command": "true"}
    write_model(file, model.kind, model.tensors, {**model.description, "preprocessing": code})
    with pytest.raises(SystemExit, match="own: has code of its own"):
        make_weights.make_weights(own, "chest_xray", {}, bundles=bundles)
    monkeypatch.setattr(make_weights, "LARGEST_FILE", 1000)
    with pytest.raises(SystemExit, match=r"at most 25 MB can be shipped"):
        make_weights.make_weights(latent_bundle, "chest_xray", {}, bundles=bundles)
