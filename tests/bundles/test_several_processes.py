"""Two processes: they share each step, train the weights that one process trains, and only the first one writes."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from forked_program import free_port, wait_until
from monai.bundle import run
from tiny_bundles import TINY, TINY_3D, TINY_KL, TINY_LATENT, tiny_cohort

import monai_diffae
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.handlers import progress

ROOT = Path(__file__).parents[2] / "bundles" / "diffae_2d"
TOLERANCE = 1e-4  # of the loss, relative; docs/training.md states it

KINDS = ("3d", "first_stage", "latent")
SMALL = {**TINY, "val_interval": 6, "calibration_cases": 0}


def training(out, cohort, world_size, bundle=ROOT, file="train.json", **settings):
    """Arguments of ``rank_process`` for one training: port, configurations, number of processes, values."""
    values = {
        **settings, "bundle_root": str(bundle), "dataset_dir": str(cohort), "output_dir": str(out), "report_every": 1,
        "precision": "fp32", "batch_size": 4 // world_size,
    }  # fmt: skip
    overlay = "multi_gpu_train.json" if file == "train.json" else f"overlays/multi_gpu_{file}"
    files = [str(bundle / "configs" / name) for name in (file, overlay)[:world_size]]
    return free_port(), files, world_size, values


def rank_process(rank, port, files, world_size, values):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    progress.draw_curves = lambda frame: SimpleNamespace(savefig=Path.touch)  # matplotlib is slow
    run("training", config_file=files, **values)


def start(arguments):
    """Fork a training from this process, which has imported what takes much longer than the training."""
    assert callable(monai_diffae.embed)  # its modules, too
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank_process, args=(rank, *arguments)) for rank in range(arguments[2])]
    for rank in ranks:
        rank.start()
    return ranks


def train(arguments):
    ranks = start(arguments)
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * len(ranks)


def assert_same_curves(folder, kind, record_property, table="curves.csv"):
    """The curves of ``folder/1`` and ``folder/2`` are equal."""
    one, two = (pd.read_csv(folder / ranks / table) for ranks in "12")
    for column in ("loss", "validation_loss", "images_seen", "learning_rate"):
        np.testing.assert_allclose(two[column], one[column], rtol=TOLERANCE, err_msg=column)
    largest = (two["loss"] / one["loss"] - 1).abs().max()
    record_property("figure", f"{kind}: losses of two processes and of one differ by at most {largest:.1e}")
    return one


@pytest.mark.goal(id="R18")
@pytest.mark.parametrize("kind", ["2d", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS)])
def test_two_processes_equal_one_at_the_same_global_batch(kind, tiny_bundle, small_cohort, tmp_path, record_property):
    common = {"max_epochs": 6, "val_interval": 3, "lr_schedule": "constant", "warmup_steps": 2}
    volumes = small_cohort if kind == "2d" else tiny_cohort(tmp_path / "volumes", "kl")
    for ranks in (1, 2):
        out, cohort = tmp_path / str(ranks), volumes
        if kind == "2d":
            arguments = {**SMALL, **common, "max_epochs": 1, "val_interval": 1, "learning_rate": 1e-3}
        elif kind == "3d":
            arguments = {"bundle": ROOT.parent / "diffae_3d", **TINY_3D, **common}
        elif kind == "first_stage":
            arguments = {"bundle": ROOT.parent / "autoencoder_kl_3d", **TINY_KL, **common}
        else:
            cohort, bundle = tiny_bundle.cohort, shutil.copytree(tiny_bundle.directory, out)
            arguments = {"bundle": bundle, "file": "train_latent.json", **TINY_LATENT, **common}
        if ranks == 2 and kind != "latent":  # they share the reading, too
            arguments["cache_dir"] = str(tmp_path / "cache")
        train(training(out, cohort, ranks, **arguments))
    table = "latent/curves.csv" if kind == "latent" else "curves.csv"
    assert assert_same_curves(tmp_path, kind, record_property, table)["loss"].count() >= (2 if kind == "2d" else 6)
    if kind != "latent":
        assert {part.name[12:16] for part in (tmp_path / "cache").glob("*.safetensors")} == {"0000", "0001"}
    else:  # the processes share the embedding
        files = [tmp_path / ranks / "embeddings" / "embeddings.parquet" for ranks in "12"]
        one, two = (z_matrix(read_embeddings(file)) for file in files)
        assert np.array_equal(one, two)


def checkpoint(out):
    return torch.load(out / "models" / "checkpoint.pt", weights_only=True)


@pytest.mark.goal(id="R18")
@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_ends_the_other_within_30_seconds(small_cohort, tmp_path, dead, record_property):
    """Goal R18: exit code, seconds and orphans after kill -9 of one of two processes that nothing watches."""
    settings = {**SMALL, "max_epochs": 100_000, "val_interval": 100_000}
    ranks = start(training(tmp_path, small_cohort, 2, **settings))
    try:
        assert wait_until((tmp_path / "models" / "checkpoint.pt").is_file)
        os.kill(ranks[dead].pid, signal.SIGKILL)
        killed = time.monotonic()
        ranks[1 - dead].join(60)
        seconds = time.monotonic() - killed
        assert seconds < 30
        record_property("figure", f"the other process ends {seconds:.1f} s after rank {dead} was killed")
        assert ranks[1 - dead].exitcode != 0
    finally:
        for rank in ranks:
            rank.kill()
    assert checkpoint(tmp_path)["trainer"]["iteration"] > 0


@pytest.mark.slow
def test_torchrun_trains_resumes_and_writes_once(small_cohort, tmp_path):
    files = [str(ROOT / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    settings = {
        **SMALL, "bundle_root": ROOT, "dataset_dir": small_cohort, "output_dir": tmp_path / "out", "batch_size": 2,
        "val_interval": 1, "num_pictures": 1, "report_every": 1,
    }  # fmt: skip
    arguments = [str(x) for key, value in settings.items() for x in (f"--{key}", value)]

    def launch(max_epochs):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        bundle = ["-m", "monai.bundle", "run", "training", "--config_file", json.dumps(files)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [*torchrun, *bundle, *arguments, "--max_epochs", str(max_epochs)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stdout

    launch(1)
    assert "resuming from step 2 of 4" in launch(2)
    # 10 images in batches of 2 on each of 2 ranks: 2 steps per epoch
    saved = checkpoint(tmp_path / "out")
    assert saved["trainer"] == {"iteration": 4, "epoch_length": 2}
    assert not any(name.startswith("module.") for name in saved["network"])
    steps = pd.read_csv(tmp_path / "out" / "curves.csv").dropna(subset=["loss"])
    assert steps["step"].tolist() == [1, 2, 3, 4]
    assert steps["images_seen"].tolist() == [4, 8, 12, 16]
