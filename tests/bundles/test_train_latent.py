"""The latent training of the bundle: its config, and the run that MONAI starts from it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from monai.bundle import ConfigParser

from monai_diffae.bundle.config import check_config
from monai_diffae.bundle.latent_ddim import load_latent

CONFIGS = Path(__file__).parents[2] / "bundles" / "diffae_2d" / "configs"


def config(*names):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in names])
    merged = parser.get()
    merged.pop("_meta_", None)
    return merged


@pytest.mark.parametrize("names", [("train_latent",), ("train_latent", "latent_paper")])
def test_every_key_is_used(names):
    check_config(config(*names))


def test_its_keys_have_the_names_of_train():
    ours, train = config("train_latent"), config("train")
    shared = (ours.keys() & train.keys()) - {"imports"}
    assert shared >= {
        "max_epochs",
        "batch_size",
        "learning_rate",
        "ema_decay",
        "seed",
        "device",
        "mlflow",
        "tracking_uri",
    }
    assert ours["device"] == train["device"]


def test_the_papers_settings_are_an_overlay():
    parser = ConfigParser(config("train_latent", "latent_paper"))
    parser.update({"z_channels": 512})
    network = parser.get_parsed_content("latent_network_def")
    assert (network.config["hidden_channels"], network.config["num_layers"]) == (2048, 10)
    assert (parser.get("learning_rate"), parser.get("ema_decay"), parser.get("weight_decay")) == (1e-4, 0.9999, 0.01)
    assert parser.get("max_grad_norm") is None
    assert parser.get("latent_diffusion")["prediction"] == "eps"
    losses = [parser.get("train#trainer#loss_function"), parser.get("validate#key_metric#loss#loss_fn")]
    assert [loss["_target_"] for loss in losses] == ["torch.nn.L1Loss"] * 2


@pytest.mark.slow
def test_monai_runs_it_from_the_command_line(tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle")
    settings = {
        "config_file": bundle / "configs" / "train_latent.json", "bundle_root": bundle,
        "dataset_dir": tiny_bundle.cohort, "max_epochs": 2, "batch_size": 4, "val_interval": 1, "device": "cpu",
    }  # fmt: skip
    arguments = [str(x) for key, value in settings.items() for x in (f"--{key}", value)]

    def run(*more):
        command = [sys.executable, "-m", "monai.bundle", "run", "training", *arguments, *more]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)

    done = run()
    assert done.returncode == 0, done.stderr[-4000:]
    assert "copying_ratio" in done.stderr
    assert load_latent(bundle, "cpu").network.z_channels == 8
    assert len(pd.read_csv(bundle / "latent" / "curves.csv").dropna(subset=["validation_copying_ratio"])) == 2
    (exported,) = (bundle / "latent" / "mlruns").rglob("latent_config.json")
    assert json.loads(exported.read_text())["z_channels"] == 8
    assert load_latent(exported.parents[1], "cpu").network.z_channels == 8
    assert "nothing to do" in run().stderr
    wrong = run("--learning_rat", "1")
    errors = [line for line in wrong.stderr.splitlines() if line.startswith("error: ")]
    assert wrong.returncode != 0
    assert len(errors) == 1
    assert "did you mean 'learning_rate'" in errors[0]
