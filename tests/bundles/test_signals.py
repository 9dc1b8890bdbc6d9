"""Signals to a training and to its workers (goals R25, R26)."""

import multiprocessing
import os
import signal
import time

import numpy as np
import psutil
import pytest
import torch
from forked_program import wait_until

from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data.streamed import in_order

pytestmark = pytest.mark.slow


@pytest.fixture
def bundle(tmp_path):
    return init_bundle(tmp_path / "bundle", "diffae_2d")


@pytest.fixture
def start(bundle, small_cohort, tmp_path, tiny_settings, start_program):
    """Starts a training with two workers in a process group of its own, and waits until it has begun."""
    settings = {**tiny_settings, "max_epochs": 100_000, "val_interval": 100_000, "batch_size": 2, "cache_gib": 1e-9}
    checkpoint = bundle / "models" / "checkpoint.pt"

    def begin(**more):
        overrides = [f"{key}={str(value).replace(' ', '')}" for key, value in {**settings, **more}.items()]
        began = time.time()
        words = ["train", bundle, small_cohort, "--workers", "2", "--overrides", *overrides]
        program = start_program(*words, output=tmp_path / "log")
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
    step = torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"]
    assert f"stopped at step {step}" in program.output.read_text()
    assert program.errors() == []


@pytest.mark.goal(id="R3")
@pytest.mark.goal(id="R21")
def test_nothing_of_a_killed_training_stays(start, bundle):
    """Its cache holds patients' pixels, its temporary files are as large as checkpoints (goals R3, R21)."""
    program, cache = start(), bundle / "cache"
    abandoned = set(cache.glob("diffae-cache-*"))
    assert abandoned
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    assert abandoned <= set(cache.iterdir())
    program = start()
    assert not abandoned & set(cache.iterdir())
    os.killpg(program.pid, signal.SIGTERM)
    assert program.wait() == 143
    assert not list(bundle.rglob(".tmp-*"))
    assert not list(cache.glob("*diffae-cache-*"))


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
