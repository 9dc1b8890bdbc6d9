"""Campaigns of goals R1, R3, R16, R25 and R26: kills and signals harm no result.

Fast tests of these goals have the same mark (docs/reliability.md).
"""

import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from forked_program import die, die_at_call, wait_until
from PIL import Image
from tiny_bundles import TINY, TINY_3D
from torch.utils._pytree import tree_map

from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.model_file import read_model
from monai_diffae.data import tensor_files
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.data.streamed import in_order
from monai_diffae.handlers import CheckpointKeeper, progress

pytestmark = pytest.mark.slow

TINY_OF = {2: {**TINY, "batch_size": 2}, 3: {**TINY_3D, "picture_steps": 2, "probe_interval": 0, "batch_size": 1}}


def saved_step(bundle):
    """The step of the last checkpoint."""
    return int(torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"])


SETTINGS = {
    "network_def#unet#dropout": 0.2, "max_epochs": 12, "val_interval": 3, "report_every": 2, "warmup_steps": 5,
    "num_pictures": 1, "checkpoint_minutes": 0.02, "calibration_cases": 0,
}  # fmt: skip
PATIENTS = {2: {"num_patients": 14, "val_fraction": 0.2}, 3: {"num_patients": 7, "val_fraction": 0.2}}


@pytest.fixture(autouse=True)
def _no_picture_of_curves(monkeypatch):
    """It takes longer than an epoch."""
    monkeypatch.setattr(progress, "draw_curves", lambda frame: SimpleNamespace(savefig=Path.touch))


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    """Virtual patients in 2D and 3D, with batches that make 5 steps per epoch."""
    root = tmp_path_factory.mktemp("cohorts")
    return {
        axes: make_virtual_cohort(root / str(axes), size=16, spatial_dims=axes, test_fraction=0.1, **PATIENTS[axes])
        for axes in PATIENTS
    }


def command(bundle, cohort, axes, workers=0, **settings):
    """The arguments of the program; the bundle is made if it does not exist."""
    if not bundle.exists():
        init_bundle(bundle, f"diffae_{axes}d")
    values = {**TINY_OF[axes], **SETTINGS, **settings}
    overrides = [f"{key}={str(value).replace(' ', '')}" for key, value in values.items()]
    return ["train", bundle, cohort, "--workers", workers, "--overrides", *overrides]


def outcome(bundle):
    """Everything that a training has computed, without how long it took."""
    checkpoint = torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)
    del checkpoint["validation"]["seconds"]
    checkpoint.pop("unreported")
    curves = pd.read_csv(bundle / "curves.csv", dtype=str).drop(columns="images_per_s")
    return {
        **{name: (bundle / "models" / name).read_bytes() for name in ("model.safetensors", "model.pt", "metrics.json")},
        **{name: (bundle / name).read_bytes() for name in ("configs/train.json", "docs/README.md")},
        "checkpoint.pt": tree_map(lambda x: x.tolist() if isinstance(x, torch.Tensor) else x, checkpoint),
        "curves.csv": curves.to_csv(),
        "pictures": {file.name: file.read_bytes() for file in bundle.glob("pictures/*")},
    }


def temporary_files(bundle):
    """Own files of an earlier process that nothing needs any more."""
    return [file.name for file in bundle.rglob(".tmp-*")]


# -- what a process that was forked does to itself ---------------------------------------------------------------------


def killed_in_a_save(number, call):
    """Killed at a call of the file system in a save; ``call`` counts over this save and those after it."""
    save, saves = CheckpointKeeper.save, []

    def counted(*args, **kwargs):
        saves.append(len(saves) + 1)
        return save(*args, **kwargs)

    CheckpointKeeper.save = counted
    die_at_call(call, lambda: number in saves)


def killed_while_it_writes(number, share):
    """Killed when a share of one of the large files is written; ``number`` counts these files, three per save."""
    flush, count = tensor_files._flush, itertools.count(1)

    def half(path):
        if next(count) == number:
            os.truncate(path, int(share * path.stat().st_size))
            die()
        flush(path)

    tensor_files._flush = half


def draw_kills(generator):
    """Five kills of one chain, in the order in which they happen; two are by the clock."""
    kills = [
        partial(killed_in_a_save, 1, generator.randint(1, 45)),  # the first save writes all files
        partial(killed_in_a_save, generator.randint(2, 5), generator.randint(1, 12)),
        partial(killed_while_it_writes, generator.randint(4, 15), generator.uniform(0, 1)),
        None,
        None,
    ]
    generator.shuffle(kills)
    return kills


@pytest.mark.goal(id="R1")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("axes", [2, 3])
def test_a_chain_of_kills_ends_as_the_whole_training(axes, workers, start_program, cohorts, tmp_path, record_property):
    """Five kills (in saves, in a half-written file, by the clock), then to the end."""
    generator = random.Random(10 * axes + workers)
    whole, part, log = tmp_path / "whole", tmp_path / "part", tmp_path / "log.txt"
    first, again = (command(bundle, cohorts[axes], axes, workers) for bundle in (whole, part))
    assert start_program(*first, output=log).wait() == 0, log.read_text()
    checkpoint, num_kills = part / "models" / "checkpoint.pt", 0
    for fault in draw_kills(generator):
        saved_at = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0
        program = start_program(*again, output=log, fault=fault)
        if fault is None:
            assert wait_until(lambda at=saved_at: checkpoint.is_file() and checkpoint.stat().st_mtime_ns > at)
            time.sleep(generator.uniform(0, 0.6))
            kill = generator.choice([os.kill, os.killpg])
            kill(program.pid, signal.SIGKILL)
        num_kills += program.wait() == -signal.SIGKILL
        if checkpoint.is_file():
            torch.load(checkpoint, weights_only=True)
            if (part / "models" / "model.safetensors").is_file():
                read_model(part / "models" / "model.safetensors")
    assert num_kills >= 4  # a training may have ended before its last kill
    assert start_program(*again, output=log).wait() == 0, log.read_text()
    assert outcome(whole) == outcome(part)
    assert saved_step(part) == 60
    assert temporary_files(part) == []
    record_property("figure", f"{axes}D, {workers} workers: the same weights and curves after {num_kills} kills")


# -- embed and reconstruct ---------------------------------------------------------------------------------------------

CHAINS, KILLS = 3, 2  # per command


def final_files(folder):
    """The files with final names: temporary ones, and folders of unfinished parts, begin with a dot."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if not any(p[0] == "." for p in name.parts)}


@pytest.mark.goal(id="R16")
@pytest.mark.parametrize(("name", "count"), [("embed", 1000), ("reconstruct", 24)])
def test_a_killed_command_ends_in_the_same_bytes(name, count, start_program, labelled, tmp_path, record_property):
    """In forks of this process, in which all folders have one key for patients."""
    for k in range(count):
        noise = np.random.default_rng(k).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"p{k:04d}.png")
    names = [f"p{k:04d}.png" for k in range(count)]
    pd.DataFrame({"image": names, "split": "test"}).to_csv(tmp_path / "cohort.csv", index=False)
    rng = np.random.default_rng(count)

    def run(out, killed_after=None):
        command = [name, labelled.bundle, tmp_path / "cohort.csv", out, "--device", "cpu", "--workers", 0]
        process = start_program(*command, output=tmp_path / "log.txt")
        process.join(killed_after)
        if killed_after is not None:
            process.kill()
            process.join()
        return process.exitcode

    began = time.monotonic()
    assert run(tmp_path / "whole") == 0, (tmp_path / "log.txt").read_text()
    seconds, expected = time.monotonic() - began, final_files(tmp_path / "whole")
    for chain in range(CHAINS):
        out = tmp_path / f"chain{chain}"
        for _ in range(KILLS):
            after = rng.uniform(0.05, 0.95) * seconds
            while run(out, after) != -signal.SIGKILL:  # the machine was busier before, and the run has ended
                shutil.rmtree(out)
                after *= 0.7
            for file, content in final_files(out).items() if out.exists() else ():
                if file.endswith(".json"):
                    json.loads(content)  # a record that says what is not finished
                else:
                    assert content == expected[file], file
        assert run(out) == 0, (tmp_path / "log.txt").read_text()
        assert final_files(out) == expected
        assert not list(out.rglob(".tmp-*"))
    record_property("figure", f"{name}: {CHAINS * KILLS} kills, {CHAINS} of {CHAINS} chains end in the same bytes")


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path):
    return tmp_path / "bundle"


@pytest.fixture
def start(bundle, cohorts, tmp_path, start_program):
    """Starts an endless training with two workers in a process group of its own, and waits until it has begun."""

    def begin(**settings):
        settings = {"max_epochs": 100_000, "val_interval": 100_000, **settings}
        began, checkpoint = time.time(), bundle / "models" / "checkpoint.pt"
        words, log = command(bundle, cohorts[2], 2, workers=2, **settings), logging.getLogger()
        # with pytest's handlers, the program would set up no log
        program = start_program(*words, output=tmp_path / "log", fault=log.handlers.clear)
        assert wait_until(lambda: checkpoint.is_file() and checkpoint.stat().st_mtime > began)
        return program

    return begin


def workers(program):
    return psutil.Process(program.pid).children(recursive=True)


@pytest.mark.goal(id="R25")
@pytest.mark.goal(id="R26")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_the_last_step(start, bundle, number, record_property):
    program = start(checkpoint_minutes=1000)  # the first save is that of the first epoch
    assert len(workers(program)) >= 2
    began = time.monotonic()
    os.killpg(program.pid, number)
    assert program.wait() == 128 + number
    record_property("figure", f"{number.name} to the group: {time.monotonic() - began:.1f} s")
    log = program.output.read_text()
    assert f"stopped at step {saved_step(bundle)}" in log
    assert not [word for word in ("Traceback", "error: ", "this is a bug") if word in log]


@pytest.mark.goal(id="R3")
@pytest.mark.goal(id="R21")
def test_a_training_after_a_kill_reads_no_scan_again_and_leaves_no_temporary_files(start, bundle):
    """Its temporary files are as large as checkpoints (goals R3, R21)."""
    program = start()
    parts = sorted((bundle / "cache").iterdir())
    assert parts
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    program = start()
    assert sorted((bundle / "cache").iterdir()) == parts
    os.killpg(program.pid, signal.SIGTERM)
    assert program.wait() == 143
    assert not temporary_files(bundle)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_process_that_is_killed(number):
    """They wait to hand over their images, and kept memory and the terminal's pipe for good."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    reader = context.Process(target=read_one_of_many, args=(ready,))
    reader.start()
    assert ready.wait(60)
    readers_workers = psutil.Process(reader.pid).children(recursive=True)
    assert len(readers_workers) == 2
    os.kill(reader.pid, number)
    reader.join()
    _, alive = psutil.wait_procs(readers_workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert not alive


def read_one_of_many(ready):
    for _ in in_order(range(1000), large_array, workers=2):
        ready.set()
        time.sleep(600)


def large_array(_number):
    return np.zeros(1_000_000)  # larger than a pipe
