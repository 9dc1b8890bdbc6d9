"""Campaigns of goals R1, R3, R16 and R17: kills and full disks harm no result.

Fast tests of these goals have the same mark (docs/reliability.md).
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
import torch
from forked_program import wait_until
from PIL import Image
from tiny_bundles import TINY, TINY_3D

from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.model_file import read_model
from monai_diffae.data.samples import make_virtual_cohort

pytestmark = pytest.mark.slow

CHEAP = {"without_picture_of_curves": []}  # it takes longer than an epoch
TINY_OF = {2: {**TINY, "batch_size": 2}, 3: {**TINY_3D, "picture_steps": 2, "probe_interval": 0, "batch_size": 1}}


def saved_step(bundle):
    """The step of the last checkpoint."""
    return int(torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"])


SETTINGS = {
    "network_def#unet#dropout": 0.2, "max_epochs": 12, "val_interval": 3, "report_every": 2, "warmup_steps": 5,
    "num_pictures": 1, "checkpoint_minutes": 0.02, "calibration_cases": 0,
}  # fmt: skip
PATIENTS = {2: {"num_patients": 14, "val_fraction": 0.2}, 3: {"num_patients": 7, "val_fraction": 0.2}}


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
        "checkpoint.pt": checkpoint,
        "curves.csv": curves.to_csv(),
        "pictures": {file.name: file.read_bytes() for file in bundle.glob("pictures/*")},
    }


def differences(a, b, where=""):
    """Where two nested values differ; tensors must have the same bits."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = {*a, *b}
        return [d for k in sorted(keys, key=str) for d in differences(a.get(k), b.get(k), f"{where}/{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    return [] if a == b else [where]


def temporary_files(bundle):
    """Own files of an earlier process that nothing needs any more."""
    return [file.name for file in [*bundle.rglob(".tmp-*"), *(bundle / "cache").glob("*diffae-cache-*")]]


def draw_kills(generator):
    """Five kills of one chain, in the order in which they happen."""
    kills = [
        ("killed_in_a_save", [1, generator.randint(1, 45)]),  # the first save writes all files
        ("killed_in_a_save", [generator.randint(2, 5), generator.randint(1, 12)]),
        ("killed_while_it_writes", [generator.randint(4, 15), generator.uniform(0, 1)]),
        ("killed_in_validation", [generator.randint(1, 2)]),
        ("clock", [generator.uniform(0, 0.6)]),
    ]
    if generator.random() < 0.5:
        kills[1] = ("killed_in_step", [generator.randint(2, 12)])
    generator.shuffle(kills)
    return kills


@pytest.mark.goal(id="R1")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("axes", [2, 3])
def test_a_chain_of_kills_ends_as_the_whole_training(axes, workers, start_program, cohorts, tmp_path, record_property):
    """Five kills (in a save, in a half-written file, in a validation, in a step, by the clock), then to the end."""
    generator = random.Random(10 * axes + workers)
    whole, part, log = tmp_path / "whole", tmp_path / "part", tmp_path / "log.txt"
    first, again = (command(bundle, cohorts[axes], axes, workers) for bundle in (whole, part))
    assert start_program(*first, output=log, faults=CHEAP).wait() == 0, log.read_text()
    checkpoint, num_kills = part / "models" / "checkpoint.pt", 0
    for name, arguments in draw_kills(generator):
        saved_at = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0
        faults = CHEAP if name == "clock" else {**CHEAP, name: arguments}
        program = start_program(*again, output=log, faults=faults)
        if name == "clock":
            assert wait_until(lambda at=saved_at: checkpoint.is_file() and checkpoint.stat().st_mtime_ns > at)
            time.sleep(arguments[0])
            kill = generator.choice([os.kill, os.killpg])
            kill(program.pid, signal.SIGKILL)
        num_kills += program.wait() == -signal.SIGKILL
        if checkpoint.is_file():
            torch.load(checkpoint, weights_only=True)
            if (part / "models" / "model.safetensors").is_file():
                read_model(part / "models" / "model.safetensors")
    assert num_kills >= 4  # a training may have ended before its last kill
    assert start_program(*again, output=log, faults=CHEAP).wait() == 0, log.read_text()
    assert differences(outcome(whole), outcome(part)) == []
    assert saved_step(part) == 60
    assert temporary_files(part) == []
    record_property("figure", f"{axes}D, {workers} workers: the same weights and curves after {num_kills} kills")


@pytest.mark.goal(id="R3")
@pytest.mark.goal(id="R17")
@pytest.mark.parametrize("save", [1, 3])
def test_a_full_disk_keeps_the_last_checkpoint(save, start_program, cohorts, tmp_path, record_property):
    """The disk fills up before the first or a later save; the same command ends as the whole training."""
    whole, log = tmp_path / "whole", tmp_path / "log.txt"
    short = {"max_epochs": 3, "num_pictures": 0, "checkpoint_minutes": 1000}  # a save per epoch
    assert start_program(*command(whole, cohorts[2], 2, **short), output=log, faults=CHEAP).wait() == 0, log.read_text()
    size = (whole / "models" / "checkpoint.pt").stat().st_size
    for limit in (0, 1000, size // 2, int(0.99 * size)):
        bundle = tmp_path / str(limit)
        arguments = command(bundle, cohorts[2], 2, **short)
        program = start_program(*arguments, output=log, faults={**CHEAP, "files_no_larger_than": [limit, save]})
        assert program.wait() == 6, log.read_text()
        (error,) = program.errors()
        assert "cannot be written (File too large); free space" in error
        assert len(error) <= 200
        assert temporary_files(bundle) == []
        models = bundle / "models"
        assert save > 1 or not (models / "model.safetensors").exists()
        assert save == 1 or saved_step(bundle) == 5 * (save - 1)
        for file in models.glob("*.pt"):
            torch.load(file, weights_only=True)
        assert start_program(*arguments, output=log, faults=CHEAP).wait() == 0, log.read_text()
        assert differences(outcome(whole), outcome(bundle)) == []
        assert temporary_files(bundle) == []
        shutil.rmtree(bundle)
    record_property("figure", f"full disk at save {save}: 4 of 4 resume to the same weights")


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
    rng, partial = np.random.default_rng(count), 0

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
                    partial += content != expected[file]
        assert run(out) == 0, (tmp_path / "log.txt").read_text()
        again = final_files(out)
        assert again.keys() == expected.keys()
        assert [file for file in again if again[file] != expected[file]] == []
        assert not list(out.rglob(".tmp-*"))
    assert partial == 0
    record_property("figure", f"{name}: {CHAINS * KILLS} kills, {CHAINS} of {CHAINS} chains end in the same bytes")
