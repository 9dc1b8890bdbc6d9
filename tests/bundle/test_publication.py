"""Publishing a model: readers get the old or the new one, never a mixture, whatever happens to the publisher."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from monai_diffae.apps.training.train import train
from monai_diffae.bundle import checksum, load_bundle, publish, writing
from monai_diffae.bundle.checksums import config_checksum
from monai_diffae.bundle.layout import LATENT_FILES, MODEL_FILES
from monai_diffae.bundle.writing import WriteLock
from monai_diffae.data.atomic import _HOST
from monai_diffae.errors import ConfigError, MachineError, ScanError


@pytest.fixture
def models(tiny_bundle, tmp_path):
    """Two bundles with networks of the same shape: only their weights and percentiles tell them apart."""
    first = copy(tiny_bundle.directory, tmp_path / "first")
    second = copy(first, tmp_path / "second")
    weights = torch.load(second / "models" / "model.pt", weights_only=True)
    torch.save({name: value + 0.01 for name, value in weights.items()}, second / "models" / "model.pt")
    config = json.loads((second / "models" / "config.json").read_text())
    (second / "models" / "config.json").write_text(json.dumps(config | {"percentiles": [1, 99]}))
    (second / "models" / "anomaly.pt").write_bytes(b"residuals")
    return first, second


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns("cache", ".lock")))


def identity(bundle: Path) -> tuple[str, str]:
    return checksum(bundle), config_checksum(bundle)


def content(bundle: Path) -> dict[str, bytes]:
    """What readers see: the files of ``models`` that are not hidden."""
    return {p.name: p.read_bytes() for p in (bundle / "models").iterdir() if not p.name.startswith(".")}


def test_all_files_of_the_model_are_replaced_and_those_of_the_old_one_are_gone(models, tmp_path):
    first, second = models
    target = copy(first, tmp_path / "target")
    (target / "models" / "notes.txt").write_text("mine")
    publish(second, target)
    assert content(target) == {**content(second), "notes.txt": b"mine"}
    assert [p.name for p in (target / "models").iterdir() if p.name.startswith(".")] == [".lock"]
    publish(first, target)
    assert content(target) == {**content(first), "notes.txt": b"mine"}  # without anomaly.pt
    assert load_bundle(target, "cpu").config["percentiles"] == [0.5, 99.5]


def test_a_latent_model_without_a_checkpoint_does_not_get_that_of_the_old_one(models, tmp_path):
    first, second = models
    target = copy(first, tmp_path / "target")
    for name in LATENT_FILES:
        (target / "models" / name).write_bytes(b"old")
    for name in LATENT_FILES[:2]:  # as in an exported bundle
        (second / "models" / name).write_bytes(b"new")
    publish(second, target)
    assert content(target) == content(second)


def test_a_latent_model_stays_and_says_that_it_is_of_another_autoencoder(models, tmp_path):
    first, second = models
    target = copy(first, tmp_path / "target")
    for name in LATENT_FILES:
        (target / "models" / name).write_bytes(b"latent")
    publish(second, target)
    assert content(target) == {**content(second), **dict.fromkeys(LATENT_FILES, b"latent")}


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda s, t: (s / "models" / "model.pt").unlink(), ConfigError, "^second: there is no models/model.pt; "),
        (lambda s, t: (s / "models" / "config.json").unlink(), ConfigError, "^second: there is no models/config.json"),
        (lambda s, t: (s / "models" / "model.pt").write_bytes(b"0"), ScanError, "^model.pt: cannot be read as weights"),
        (lambda s, t: (t / "configs" / "train.json").unlink(), ConfigError, "^target: is not a bundle "),
        (
            lambda s, t: shutil.copy(t / "configs" / "train.json", s / "models" / "config.json"),
            ConfigError,
            "weights do not fit the configuration's network",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(models, tmp_path, spoil, error, message):
    first, second = models
    target = copy(first, tmp_path / "target")
    spoil(second, target)
    before = content(target)
    with pytest.raises(error, match=message) as caught:
        publish(second, target)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert content(target) == before
    assert not list((target / "models").glob(".staged-*"))


def test_a_bundle_is_not_published_to_itself(models, tmp_path):
    (tmp_path / "link").symlink_to(models[0])
    with pytest.raises(ConfigError, match="cannot be published to itself"):
        publish(models[0], tmp_path / "link")


@pytest.mark.goal(id="R3")
@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_full_disk_changes_nothing(models, tmp_path, limit):
    first, second = models
    target = copy(first, tmp_path / "target")
    before = content(target)
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(MachineError, match="cannot be written .*free space"):
            publish(second, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert content(target) == before
    assert not list((target / "models").glob(".staged-*"))


@pytest.mark.goal(id="R3")
def test_temporary_files_of_a_killed_process_are_removed_everywhere(models):
    process = subprocess.Popen(["true"])
    process.wait()
    folders = [models[0], *(models[0] / name for name in ("models", "configs", "pictures"))]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / f".tmp-{_HOST}-{process.pid}-0.json").write_text("half")
    with WriteLock(models[0] / "models"):
        assert [file for folder in folders for file in folder.glob(".tmp-*")] == []


def test_file_systems_without_links_get_copies(models, tmp_path, monkeypatch):
    first, second = models
    target = copy(first, tmp_path / "target")

    def no_links(self, source):
        raise PermissionError("no links")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    publish(second, target)
    assert content(target) == content(second)


def test_only_one_process_writes_at_a_time(models, tmp_path, monkeypatch):
    first, second = models
    target = copy(first, tmp_path / "target")
    before = content(target)
    monkeypatch.setattr(writing, "_PATIENCE_S", 0.1)
    with FileLock(target / "models" / ".lock"), pytest.raises(ConfigError) as caught:
        publish(second, target)
    assert str(caught.value).startswith("target: another process trains or publishes this bundle; wait until ")
    assert content(target) == before
    publish(second, target)


# -- the publisher is killed -------------------------------------------------------------------------------------------

KILLED_AT_EACH_STEP = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from monai_diffae.bundle import load_bundle, publish

first, second, folder, *names = sys.argv[1:]

def publish_until(step, target):
    count = 0
    def counted(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    for name in names:
        setattr(os, name, counted(getattr(os, name)))
    publish(second, target)
    os._exit(0)

ended, step = None, 0
while ended != 0:
    step += 1
    target = Path(shutil.copytree(first, Path(folder) / str(step), ignore=shutil.ignore_patterns("cache")))
    process = os.fork()
    if process == 0:
        publish_until(step, target)
    ended = os.waitpid(process, 0)[1]
    trained = load_bundle(target, "cpu")
    seen = [trained.sha256, trained.config_sha256, trained.config["percentiles"]]
    weights = next(iter(trained.network.state_dict().values())).flatten()[0].item()
    publish(second, target)
    after = sorted(p.name for p in (target / "models").iterdir())
    print(json.dumps({"ended": ended, "seen": seen, "weight": weights, "after": after}), flush=True)
    shutil.rmtree(target)
"""


@pytest.mark.goal(id="R3")
@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_old_or_the_new_model(models, tmp_path):
    names = ["replace", "rename", "unlink", "rmdir", "mkdir", "link", "fsync"]
    first, second = models
    command = [sys.executable, "-c", KILLED_AT_EACH_STEP, str(first), str(second), str(tmp_path), *names]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    steps = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(steps) > 20
    assert [step["ended"] for step in steps] == [signal.SIGKILL] * (len(steps) - 1) + [0]
    known = {}
    for bundle in (first, second):
        trained = load_bundle(bundle, "cpu")
        weight = next(iter(trained.network.state_dict().values())).flatten()[0].item()
        known[json.dumps([trained.sha256, trained.config_sha256, trained.config["percentiles"]])] = weight
    assert {json.dumps(step["seen"]) for step in steps} == known.keys()  # both occur
    assert all(known[json.dumps(step["seen"])] == step["weight"] for step in steps)
    # from the first step at which the new model is seen, it is always seen
    is_new = [step["weight"] == list(known.values())[1] for step in steps]
    assert is_new == sorted(is_new)
    expected = sorted([".lock", *(name for name in MODEL_FILES if (second / "models" / name).is_file())])
    assert all(step["after"] == expected for step in steps)


# -- another process reads ---------------------------------------------------------------------------------------------

READER = """
import json, sys
import torch
torch.set_num_threads(1)
from monai_diffae.bundle import load_bundle

print("ready", flush=True)
while True:
    trained = load_bundle(sys.argv[1], "cpu")
    weight = next(iter(trained.network.state_dict().values())).flatten()[0].item()
    print(json.dumps([trained.sha256, trained.config_sha256, trained.config["percentiles"], weight]), flush=True)
"""


@pytest.fixture
def start_reader():
    """Starts a process that loads a bundle in a loop: its lines so far, and a function that ends it and reads them."""

    def start(bundle: Path) -> tuple[list[str], Callable[[], list[list[Any]]]]:
        reader = subprocess.Popen([sys.executable, "-c", READER, str(bundle)], stdout=subprocess.PIPE, text=True)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        lines: list[str] = []
        thread = threading.Thread(target=lambda: lines.extend(reader.stdout))
        thread.start()

        def end() -> list[list[Any]]:
            assert reader.poll() is None  # it never failed
            reader.kill()
            thread.join()
            return [json.loads(line) for line in lines if line.endswith("\n")]

        return lines, end

    return start


@pytest.mark.slow
def test_a_process_that_loads_in_a_loop_never_sees_a_mixture(models, tmp_path, start_reader):
    target = copy(models[0], tmp_path / "target")
    lines, end_reader = start_reader(target)
    random = np.random.default_rng(0)
    for i in itertools.count():
        publish(models[(i + 1) % 2], target)
        time.sleep(random.uniform(0, 0.3))
        if i >= 60 and len(lines) > 20:  # a busy machine loads less often
            break
    seen = end_reader()
    expected = []
    for bundle in models:
        trained = load_bundle(bundle, "cpu")
        weight = next(iter(trained.network.state_dict().values())).flatten()[0].item()
        expected.append([trained.sha256, trained.config_sha256, trained.config["percentiles"], weight])
    assert all(each in expected for each in seen)
    assert all(each in seen for each in expected)


@pytest.mark.goal(id="R3")
@pytest.mark.slow
def test_a_process_that_loads_during_a_training_never_sees_a_mixture(
    tiny_bundle, tmp_path, tiny_settings, start_reader
):
    target = copy(tiny_bundle.directory, tmp_path / "target")
    before = checksum(target)
    lines, end_reader = start_reader(target)
    while not lines:  # it has loaded the old model
        time.sleep(0.05)
    settings = {
        **tiny_settings, "percentiles": [1, 99], "max_epochs": 30, "val_interval": 1000, "batch_size": 2,
        "checkpoint_minutes": 0.0,
    }  # fmt: skip
    train(target, tiny_bundle.cohort, overwrite=True, overrides=settings)
    seen = end_reader()
    assert len({sha256 for sha256, *_ in seen}) > 3
    assert any(sha256 == before for sha256, *_ in seen)
    assert all(shown == ([0.5, 99.5] if sha256 == before else [1, 99]) for sha256, _, shown, _ in seen)
