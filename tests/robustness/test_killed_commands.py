"""Goal R16: embed and reconstruct, killed at random points, leave no partial file and end in the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae import embed, reconstruct

pytestmark = [pytest.mark.goal(id="R16"), pytest.mark.slow]

CHAINS, KILLS = 3, 2  # per command


def _child(work: Callable[[], object]) -> int:
    """A process of its own, with the program's modules loaded; its output is not shown."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        import torch

        torch.set_num_threads(1)  # the threads of the parent are not there
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        work()
        code = 0
    finally:
        os._exit(code)


def _whole(work: Callable[[], object]) -> float:
    """The seconds of an uninterrupted run."""
    began = time.monotonic()
    _, status = os.waitpid(_child(work), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.monotonic() - began


def _killed(work: Callable[[], object], after: float) -> bool:
    """Run and kill; whether the process was still running."""
    pid = _child(work)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def _files(folder: Path) -> dict[str, bytes]:
    """The files with final names: temporary ones, and folders of unfinished parts, begin with a dot."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if not any(p[0] == "." for p in name.parts)}


def _campaign(make: Callable[[Path], Callable[[], object]], folder: Path, seed: int) -> str:
    seconds, rng = _whole(make(folder / "whole")), np.random.default_rng(seed)
    expected, kills, partial = _files(folder / "whole"), 0, 0
    for chain in range(CHAINS):
        out = folder / f"chain{chain}"
        for _ in range(KILLS):
            after = rng.uniform(0.05, 0.95) * seconds
            while not _killed(make(out), after):  # the machine was busier before, and the run has ended
                shutil.rmtree(out)
                after *= 0.7
            kills += 1
            for name, content in _files(out).items() if out.exists() else ():
                if name.endswith(".json"):
                    json.loads(content)  # a record that says what is not finished
                else:
                    partial += content != expected[name]
        _whole(make(out))
        again = _files(out)
        assert again.keys() == expected.keys()
        assert [name for name in again if again[name] != expected[name]] == []
        assert not list(out.rglob(".tmp-*"))
    assert partial == 0
    return f"{kills} kills, {CHAINS} of {CHAINS} chains end in the same bytes, {partial} partial files"


def _pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for k in range(count):
        noise = np.random.default_rng(k).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"p{k:04d}.png")
    names = [f"p{k:04d}.png" for k in range(count)]
    pd.DataFrame({"image": names, "split": "test", "age": range(count)}).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
def test_embed(labelled, tmp_path, record_property):
    cohort = _pictures(tmp_path / "scans", 1000)

    def make(out: Path) -> Callable[[], object]:
        return lambda: embed(labelled.bundle, cohort, out, device="cpu", workers=0)

    record_property("figure", f"embed: {_campaign(make, tmp_path, 16)}")


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
def test_reconstruct(labelled, tmp_path, record_property):
    cohort = _pictures(tmp_path / "scans", 24)

    def make(out: Path) -> Callable[[], object]:
        return lambda: reconstruct(labelled.bundle, cohort, out, split="test", device="cpu", workers=0)

    record_property("figure", f"reconstruct: {_campaign(make, tmp_path, 17)}")
