"""Goals R17, R26 and R27: what happens around a training, such as a disk, a server, a signal, does not harm it."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from forked_program import NO_MOUNTS, Program, wait_until
from tiny_trainings import CHEAP, saved_step, training

from monai_diffae.data.samples import make_virtual_cohort

SETTINGS = {"max_epochs": 2, "val_interval": 2, "report_every": 5, "num_pictures": 0}
FOREVER = {"max_epochs": 100_000, "val_interval": 100_000}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 images for training, 2 for validation."""
    folder = tmp_path_factory.mktemp("cohort") / "cohort"
    return make_virtual_cohort(folder, num_patients=13, size=16, val_fraction=0.15, test_fraction=0.08)


def command(bundle: Path, cohort: Path, workers: int = 0, **settings: Any) -> list[object]:
    return training(bundle, cohort, {**SETTINGS, **settings}, workers=workers)


@pytest.mark.slow
@pytest.mark.goal(id="R17")
@pytest.mark.parametrize("from_save", [0, 2])
def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_6(
    program: Program, cohort: Path, tmp_path: Path, from_save: int, record_property: Any
) -> None:
    bundle, log = tmp_path / "bundle", tmp_path / "log.txt"
    arguments = command(bundle, cohort)
    code = program.run(log, *arguments, faults={**CHEAP, "read_only": [str(bundle), from_save]})
    if code == NO_MOUNTS:
        pytest.skip("this machine does not allow mounts")
    assert code == 6, log.read_text()
    (error,) = program.errors()
    assert "cannot be written (Read-only file system)" in error
    assert len(error) <= 200
    assert not list(bundle.rglob(".tmp-*"))
    assert from_save == 0 or saved_step(bundle) == 5
    assert program.run(log, *arguments, faults=CHEAP) == 0, log.read_text()
    assert saved_step(bundle) == 10
    record_property("figure", f"read-only {'at the start' if from_save == 0 else 'later'}: exit 6, one line, resumes")


@pytest.mark.slow
@pytest.mark.goal(id="R17")
@pytest.mark.parametrize("trouble", ["no server", "locked database"])
def test_tracking_that_fails_does_not_end_a_training(
    program: Program, cohort: Path, tmp_path: Path, trouble: str, record_property: Any
) -> None:
    bundle, log, database = tmp_path / "bundle", tmp_path / "log.txt", tmp_path / "mlflow.db"
    uri = "http://127.0.0.1:9" if trouble == "no server" else f"sqlite:///{database}"
    lock = sqlite3.connect(database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    code = program.run(log, *command(bundle, cohort, mlflow=True, tracking_uri=uri), faults=CHEAP)
    lock.close()
    assert code == 0, log.read_text()
    assert saved_step(bundle) == 10
    assert program.errors() == []
    assert len([line for line in log.read_text().splitlines() if "MLflow tracking failed" in line]) == 1
    record_property("figure", f"{trouble}: exit 0 with one line after {time.monotonic() - began:.0f} s")


@pytest.mark.slow
@pytest.mark.goal(id="R26")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", ["process", "group"])
def test_a_signal_ends_a_training_within_seconds_and_no_step_is_lost(
    program: Program, cohort: Path, tmp_path: Path, number: signal.Signals, to: str, record_property: Any
) -> None:
    bundle, log = tmp_path / "bundle", tmp_path / "log.txt"
    program.start(log, *command(bundle, cohort, workers=2, checkpoint_minutes=1000, **FOREVER), faults=CHEAP)
    assert wait_until((bundle / "models" / "checkpoint.pt").is_file), log.read_text()
    children = psutil.Process(program.pid).children(recursive=True)
    assert len(children) == 2
    began = time.monotonic()
    (os.kill if to == "process" else os.killpg)(program.pid, number)
    assert program.wait() == 128 + number, log.read_text()
    seconds, seconds_of_workers = program.answered_at - began, time.monotonic() - began
    assert f"stopped at step {saved_step(bundle)}" in log.read_text()
    assert program.errors() == []
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert seconds < 10 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # on a machine that does nothing else
    record_property("figure", f"{number.name} to the {to}: {seconds:.1f} s, workers {seconds_of_workers:.1f} s")


WARM_UP, MEASURED, MOST_MB_PER_100_STEPS = 200, 500, 1.0


@pytest.mark.slow
@pytest.mark.goal(id="R27")
@pytest.mark.parametrize("validates", [False, True])
def test_a_training_does_not_grow(
    program: Program, cohort: Path, tmp_path: Path, validates: bool, record_property: Any
) -> None:
    """Resident memory over 500 steps; with validations, pictures and saves every 50 steps, or without."""
    memory, log, bundle = tmp_path / "memory.txt", tmp_path / "log.txt", tmp_path / "bundle"
    settings = {"num_pictures": 2, "val_interval": 10} if validates else {"val_interval": 1000}
    epochs = (WARM_UP + MEASURED) // 5
    faults = {"memory_written_to": [str(memory)], **({} if validates else CHEAP)}
    assert program.run(log, *command(bundle, cohort, max_epochs=epochs, **settings), faults=faults) == 0, (
        log.read_text()
    )
    megabytes = np.loadtxt(memory)[WARM_UP:]
    assert len(megabytes) == MEASURED
    slope = 100 * np.polyfit(np.arange(MEASURED), megabytes, 1)[0]
    record_property("figure", f"{slope:+.2f} MB per 100 steps {'with' if validates else 'without'} validations")
    assert slope <= MOST_MB_PER_100_STEPS
