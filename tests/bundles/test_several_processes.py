"""Two processes: they share each step, train the weights that one process trains, and only the first one writes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
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


# Processes are forked after the imports, which take much longer than the training.
LAUNCHER = """
import json, multiprocessing, os, sys
from monai.bundle import run
import monai_diffae.apps.training, monai_diffae.bundle, monai_diffae.engines, monai_diffae.handlers

def rank_process(rank, world_size, port, files, values):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }
    run("training", config_file=files, **values)

fork = multiprocessing.get_context("fork")
for port, files, world_size, values in json.loads(sys.argv[1]):
    ranks = [fork.Process(target=rank_process, args=(r, world_size, port, files, values)) for r in range(world_size)]
    for rank in ranks:
        rank.start()
    print("ranks", *(rank.pid for rank in ranks), flush=True)
    for rank in ranks:
        rank.join()
    if any(rank.exitcode for rank in ranks):
        sys.exit(f"exit codes {[rank.exitcode for rank in ranks]}")
"""
TOLERANCE = 1e-4  # of the loss, relative; docs/training.md states it


def training(out, cohort, world_size, **settings):
    """One training for the launcher: port, configurations, number of processes, values."""
    values = {
        "bundle_root": str(ROOT), "dataset_dir": str(cohort), "output_dir": str(out), "image_size": [16, 16],
        "base_channels": 8, "channel_mult": [1, 2], "z_channels": 8, "network_def#unet#time_embed_channels": 16,
        "val_interval": 6, "num_pictures": 0, "picture_steps": 2, "report_every": 1, "precision": "fp32",
        "mlflow": False, "probe_interval": 0, "calibration_cases": 0, "batch_size": 4 // world_size, **settings,
    }  # fmt: skip
    files = [str(ROOT / "configs" / name) for name in ("train.json", "multi_gpu_train.json")[:world_size]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1], files, world_size, values


def launch(*trainings):
    """Start trainings, which run one after another."""
    command = [sys.executable, "-c", LAUNCHER, json.dumps(trainings)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def checkpoint(out):
    return torch.load(out / "models" / "checkpoint.pt", weights_only=True)


@pytest.mark.goal(id="R18")
@pytest.mark.slow
def test_two_processes_equal_one_at_the_same_global_batch(small_cohort, tmp_path, record_property):
    """Goal R18: the losses of 16 steps, and those of validations; for the last 4 steps, one process resumes both."""
    settings = {"max_epochs": 6, "learning_rate": 1e-3, "warmup_steps": 2, "lr_schedule": "constant"}
    trainings = [training(tmp_path / str(ranks), small_cohort, ranks, **settings) for ranks in (1, 2)]
    resumed = [training(tmp_path / str(ranks), small_cohort, 1, **settings | {"max_epochs": 8}) for ranks in (1, 2)]
    process = launch(*trainings, *resumed)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-6000:]
    one, two = (pd.read_csv(tmp_path / ranks / "curves.csv") for ranks in "12")
    assert one["loss"].count() == 16
    for column in ("loss", "validation_loss", "images_seen", "learning_rate"):
        np.testing.assert_allclose(two[column], one[column], rtol=TOLERANCE, err_msg=column)
    largest = (two["loss"] / one["loss"] - 1).abs().max()
    record_property("figure", f"losses of two processes and of one differ by at most {largest:.1e}")


@pytest.mark.goal(id="R18")
@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_ends_the_other_within_30_seconds(small_cohort, tmp_path, dead, record_property):
    """Goal R18: exit code, seconds and orphans after kill -9 of one of two processes that nothing watches."""
    process = launch(training(tmp_path, small_cohort, 2, max_epochs=100_000, val_interval=100_000))
    try:
        first = next(line for line in process.stdout if line.startswith("ranks "))  # after lines of MONAI
        ranks = [int(pid) for pid in first.split()[1:]]
        deadline = time.monotonic() + 300
        while not (tmp_path / "models" / "checkpoint.pt").is_file():
            assert process.poll() is None, process.stderr.read()[-6000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(ranks[dead], signal.SIGKILL)
        killed = time.monotonic()
        process.communicate(timeout=60)
        seconds = time.monotonic() - killed
        assert seconds < 30
        record_property("figure", f"the other process ends {seconds:.1f} s after rank {dead} was killed")
        assert process.returncode != 0
        for pid in ranks:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    finally:
        process.kill()
    assert checkpoint(tmp_path)["trainer"]["iteration"] > 0
