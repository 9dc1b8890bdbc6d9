"""Two processes by torchrun: they share each step, hold the same weights, and only the first one writes."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[2] / "bundles" / "diffae_2d"


@pytest.mark.slow
def test_two_processes_train_resume_and_write_once(small_cohort, tmp_path):
    files = [str(ROOT / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    settings = {
        "bundle_root": ROOT, "dataset_dir": small_cohort, "output_dir": tmp_path / "out", "image_size": [16, 16],
        "base_channels": 8, "channel_mult": [1, 2], "z_channels": 8,
        "network_def#unet#time_embed_channels": 16, "batch_size": 2, "val_interval": 1, "num_pictures": 1,
        "picture_steps": 2, "report_every": 1,
    }  # fmt: skip
    arguments = [str(x) for key, value in settings.items() for x in (f"--{key}", value)]

    def run(max_epochs):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        bundle = ["-m", "monai.bundle", "run", "training", "--config_file", str(files), "--max_epochs", str(max_epochs)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([*launch, *bundle, *arguments], capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stderr

    run(1)
    said = run(2)
    assert "resuming from step 2 of 4" in said
    # 10 images in batches of 2 on each of 2 ranks: 2 steps an epoch
    checkpoint = torch.load(tmp_path / "out" / "models" / "checkpoint.pt", weights_only=True)
    assert checkpoint["trainer"] == {"iteration": 4, "epoch_length": 2}
    assert not any(name.startswith("module.") for name in checkpoint["network"])
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    steps = curves.dropna(subset=["loss"])
    assert steps["step"].tolist() == [1, 2, 3, 4]
    assert steps["images_seen"].tolist() == [4, 8, 12, 16]
    assert curves.dropna(subset=["validation_loss"])["step"].tolist() == [2, 4]
    assert len(list((tmp_path / "out" / "pictures").glob("step_*.png"))) == 2
