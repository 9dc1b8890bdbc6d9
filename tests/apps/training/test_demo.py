import json
import shutil

import pandas as pd
import pytest
from make_weights import make_weights
from tiny_bundles import TINY

from monai_diffae.apps.training import demo_budget, demo_shipped, demo_stages
from monai_diffae.apps.training.demo import DISCLAIMER, demo
from monai_diffae.apps.training.speed import Speed
from monai_diffae.bundle import folders
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.errors import ConfigError


@pytest.fixture
def a_shipped_model(latent_bundle, tmp_path_factory, monkeypatch):
    """``bundles/``, in which chest_xray has tiny weights and one figure."""
    bundles = tmp_path_factory.mktemp("shipped") / "bundles"
    without = shutil.ignore_patterns("hippocampus", "models")
    shutil.copytree(folders.shipped("bundles"), bundles, ignore=without)
    (bundles / "chest_xray" / "docs" / "README.md").write_text("| auroc | | |")
    metadata = bundles / "chest_xray" / "configs" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "eval_metrics": {}}))
    make_weights(latent_bundle, "chest_xray", {"auroc": 0.98765}, bundles=bundles)
    for module in (folders, demo_shipped, demo_stages):
        shipped = module.shipped
        monkeypatch.setattr(
            module, "shipped", lambda kind, shipped=shipped: bundles if kind == "bundles" else shipped(kind)
        )


@pytest.mark.slow
def test_demo_makes_everything_and_skips_it_the_second_time(tmp_path, a_shipped_model):
    overrides = {key: value for key, value in TINY.items() if key not in ("device", "probe_interval")}
    overrides |= {"batch_size": 8, "val_interval": 1, "inferer#steps": 5, "inferer#invert_steps": 6}
    options = {"num_patients": 40, "size": 16, "device": "cpu", "overrides": overrides, "num_reconstructions": 3}
    with pytest.raises(ConfigError, match="did you mean 'max_epochs'"):
        demo(tmp_path, **{**options, "overrides": {**overrides, "max_epoch": 2}})
    first = demo(tmp_path, **options)
    assert set(first.paths) == {"mosaic", "curves", "embeddings", "probes"}
    features = {"z_sem", "PCA of pixels", "untrained encoder", "shipped chest_xray"}
    assert {row["features"] for row in first.probes} == features
    assert len(pd.read_csv(first.paths["probes"])) == 20
    assert first.z_sem_usage is not None
    record = json.loads((tmp_path / "reconstructions" / "record.json").read_text())["made_from"]
    assert (record["steps"], record["invert_steps"], record["solver"]) == (5, 6, "adams")  # the bundle's
    written = {path: path.stat().st_mtime_ns for path in first.paths.values()}
    second = demo(tmp_path, **options)
    assert {path: path.stat().st_mtime_ns for path in second.paths.values()} == written
    assert second.reconstruction == first.reconstruction
    with pytest.raises(ConfigError, match="holds a demo with other settings; choose another out"):
        demo(tmp_path, **{**options, "overrides": {**overrides, "learning_rate": 0.1}})
    shown = list(second.lines())
    assert shown[0] == DISCLAIMER
    assert any("ventricles" in line for line in shown)
    assert "shipped chest_xray, on held-out cases of its own data: auroc 0.9877" in shown
    assert json.loads(json.dumps(second.figures(), allow_nan=False))["reconstruction"] == first.reconstruction
    assert [row["difference"] for row in second.probes].count(None) == 5
    assert second.incomplete is None


def test_z_sem_is_probed_beside_two_baselines_and_another_models(labelled, tmp_path):
    cohort = make_virtual_cohort(tmp_path / "cohort", num_patients=12, size=16, val_fraction=0.2, test_fraction=0.3)
    arguments = (labelled.bundle, cohort, labelled.embeddings, tmp_path / "probes.csv", 0)
    rows = demo_stages.probe_once(*arguments, {"another": labelled.embeddings})
    features = ["z_sem", "PCA of pixels", "untrained encoder", "another"]
    assert {row["features"] for row in rows} == set(features)
    scores = {name: [row["score"] for row in rows if row["features"] == name] for name in features}
    assert scores["another"] == scores["z_sem"] != scores["untrained encoder"]
    before = (tmp_path / "probes.csv").stat().st_mtime_ns
    assert demo_stages.probe_once(*arguments, {})[0]["features"] == rows[0]["features"]
    assert (tmp_path / "probes.csv").stat().st_mtime_ns == before


OVERRIDES = {"image_size": [16, 16], "base_channels": 8, "channel_mult": [1, 2], "batch_size": 8}


@pytest.mark.parametrize(("seconds_per_step", "epochs", "reconstructions"), [(0.001, None, 32), (5.0, 21, 4)])
def test_the_demo_leaves_out_what_does_not_fit_and_decides_once(
    tmp_path, monkeypatch, caplog, seconds_per_step, epochs, reconstructions
):
    """30 training images in batches of 8: 3 steps an epoch, 8 of 10 minutes for training."""
    cohort = make_virtual_cohort(tmp_path / "cohort", num_patients=40, size=16)
    overlay = demo_stages.find_overlay("demo")
    arguments = (tmp_path / "budget.json", cohort, overlay, {**OVERRIDES, "max_epochs": 100}, "cpu", 10, 32)
    monkeypatch.setattr(demo_budget, "measure_speed", lambda *args: Speed(seconds_per_step, args[-1]))
    budget = demo_budget.demo_budget(*arguments)
    num_train = int((pd.read_csv(cohort)["split"] == "train").sum())
    assert budget.settings.get("max_epochs") == (epochs and int(8 * 60 // (seconds_per_step * (num_train // 8))))
    assert budget.settings["max_minutes"] == 8
    assert budget.num_reconstructions == reconstructions
    assert ("the demo does" in caplog.text) == (epochs is not None)
    monkeypatch.setattr(demo_budget, "measure_speed", lambda *args: pytest.fail("measured again"))
    assert demo_budget.demo_budget(*arguments) == budget
