"""Signals to a training and to its workers, as processes (goals R25, R26)."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from monai_diffae.bundle.folders import init_bundle

SECONDS = 300.0  # a busy machine


@pytest.fixture
def start(small_cohort, tmp_path, tiny_settings):
    """Starts a training with two workers in a process group of its own, and waits until it has begun."""
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    settings = {**tiny_settings, "max_epochs": 100_000, "val_interval": 100_000, "batch_size": 2, "cache_gib": 1e-9}
    overrides = [f"{key}={str(value).replace(' ', '')}" for key, value in settings.items()]
    command = [
        sys.executable, "-m", "monai_diffae.cli", "train", bundle, small_cohort, "--workers", "2",
        "--overrides", *overrides,
    ]  # fmt: skip
    started = []

    def begin(**more):
        process = subprocess.Popen(
            [*map(str, command), *(f"{key}={value}" for key, value in more.items())], start_new_session=True,
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        started.append(process)
        _wait_for(process, bundle / "models" / "checkpoint.pt")
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(process, file):
    before, until = file.stat().st_mtime_ns if file.is_file() else 0, time.monotonic() + SECONDS
    while not (file.is_file() and file.stat().st_mtime_ns > before):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)


def steps(bundle):
    return torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"]


def workers(process):
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.goal(id="R25")
@pytest.mark.goal(id="R26")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_the_last_step(start, tmp_path, number, record_property):
    process = start(checkpoint_minutes=1000)  # the first save is that of the first epoch
    assert len(workers(process)) >= 2
    began = time.monotonic()
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=SECONDS)
    record_property("figure", f"{number.name} to the group: {time.monotonic() - began:.1f} s")
    assert process.returncode == 128 + number, errors
    assert "this is a bug" not in errors
    assert f"stopped at step {steps(tmp_path / 'bundle')}" in errors


@pytest.mark.slow
@pytest.mark.goal(id="R25")
def test_a_worker_that_is_killed_for_memory_ends_the_training_with_exit_code_6(start):
    process = start()
    workers(process)[-1].kill()
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 6, errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "was killed, usually because memory ran out; use fewer workers" in lines[0]
    assert "Traceback" not in errors
    assert "this is a bug" not in errors


@pytest.mark.goal(id="R3")
@pytest.mark.slow
@pytest.mark.goal(id="R21")
def test_nothing_of_a_killed_training_stays(start, tmp_path):
    """Its cache holds patients' pixels, its temporary files are as large as checkpoints (goals R3, R21)."""
    process = start()
    cache = tmp_path / "bundle" / "cache"
    abandoned = set(cache.glob("diffae-cache-*"))
    assert abandoned
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert abandoned <= set(cache.iterdir())
    again = start()
    assert not abandoned & set(cache.iterdir())
    os.killpg(again.pid, signal.SIGTERM)
    assert again.wait(timeout=SECONDS) == 143
    assert not list((tmp_path / "bundle").rglob(".tmp-*"))
    assert not list(cache.glob("*diffae-cache-*"))
