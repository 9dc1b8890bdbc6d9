"""Publishing a model: readers get the old or the new one, never a mixture, whatever happens to the publisher."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from monai_diffae.bundle import checksum, load_bundle, publish, writing
from monai_diffae.bundle.checksums import config_checksum
from monai_diffae.bundle.consistent_reading import read_consistently
from monai_diffae.bundle.layout import LATENT_FILES, MODEL_FILES
from monai_diffae.bundle.writing import WriteLock
from monai_diffae.errors import ConfigError, DiffAEError, MachineError


@pytest.fixture
def models(bundle, tmp_path):
    """Two bundles with networks of the same shape, and a copy of the first; weights and percentiles differ."""
    second = Path(shutil.copytree(bundle, tmp_path / "second"))
    weights = torch.load(second / "models" / "model.pt", weights_only=True)
    torch.save({name: value + 0.01 for name, value in weights.items()}, second / "models" / "model.pt")
    config = json.loads((second / "models" / "config.json").read_text())
    (second / "models" / "config.json").write_text(json.dumps(config | {"percentiles": [1, 99]}))
    (bundle / "models" / "anomaly.pt").unlink()
    return bundle, second, Path(shutil.copytree(bundle, tmp_path / "target"))


def files(bundle):
    """What readers see: the files of ``models`` that are not hidden."""
    return {p.name: p.read_bytes() for p in (bundle / "models").iterdir() if not p.name.startswith(".")}


def hidden(bundle):
    return [p.name for p in (bundle / "models").iterdir() if p.name.startswith(".") and p.name != ".lock"]


def no_links(self, source):
    raise PermissionError("no links")


@pytest.mark.parametrize("has_links", [True, False])
def test_all_files_of_the_model_are_replaced_and_those_of_the_old_one_are_gone(models, monkeypatch, has_links):
    first, second, target = models
    if not has_links:  # as on some file systems
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    (target / "models" / "notes.txt").write_text("mine")
    publish(second, target)
    assert files(target) == {**files(second), "notes.txt": b"mine"}
    assert hidden(target) == []
    publish(first, target)
    assert files(target) == {**files(first), "notes.txt": b"mine"}  # without anomaly.pt
    assert load_bundle(target, "cpu").config["percentiles"] == [0.5, 99.5]


def test_a_latent_model_stays_unless_another_one_comes_with_the_model(models):
    _, second, target = models
    for name in LATENT_FILES:
        (target / "models" / name).write_bytes(b"old")
    publish(second, target)
    assert files(target) == {**files(second), **dict.fromkeys(LATENT_FILES, b"old")}
    for name in LATENT_FILES[:2]:  # without a checkpoint, as in an exported bundle
        (second / "models" / name).write_bytes(b"new")
    publish(second, target)
    assert files(target) == files(second)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"0", "^model.pt: cannot be read as weights"), (None, "^second: there is no models/model.pt; ")],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(models, tmp_path, content, message):
    _, second, target = models
    (second / "models" / "model.pt").unlink()
    if content is not None:
        (second / "models" / "model.pt").write_bytes(content)
    before = files(target)
    with pytest.raises(DiffAEError, match=message) as caught:
        publish(second, target)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert files(target) == before
    assert hidden(target) == []


@pytest.mark.goal(id="R3")
@pytest.mark.parametrize("limit", [0, 10_000])
def test_a_full_disk_changes_nothing(models, limit):
    _, second, target = models
    before = files(target)
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(MachineError, match="cannot be written .*free space"):
            publish(second, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(target) == before
    assert hidden(target) == []


def test_only_one_process_writes_at_a_time(models, monkeypatch):
    _, second, target = models
    before = files(target)
    monkeypatch.setattr(writing, "_PATIENCE_S", 0.1)
    with FileLock(target / "models" / ".lock"), pytest.raises(ConfigError) as caught:
        publish(second, target)
    assert str(caught.value).startswith("target: another process trains or publishes this bundle; wait until ")
    assert files(target) == before


def publish_until(step, second, target):
    """Publish in a process of its own that is killed before the given call of functions that change files."""
    count = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "link", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    publish(second, target)


@pytest.mark.goal(id="R3")
@pytest.mark.parametrize("stride", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_model(models, tmp_path, stride):
    first, second, _ = models
    shutil.rmtree(first / "configs" / "overlays")
    known = {checksum(bundle): config_checksum(bundle) for bundle in (first, second)}
    seen, ended = [], None
    while ended != 0:
        target = Path(shutil.copytree(first, tmp_path / f"target-{len(seen)}"))
        arguments = (1 + stride * len(seen), second, target)
        process = multiprocessing.get_context("fork").Process(target=publish_until, args=arguments)
        process.start()
        process.join()
        ended = process.exitcode
        assert ended in (0, -signal.SIGKILL)
        trained = load_bundle(target, "cpu")
        assert known[trained.sha256] == trained.config_sha256
        assert trained.config["percentiles"] == ([1, 99] if trained.sha256 == checksum(second) else [0.5, 99.5])
        seen.append(trained.sha256)
        with WriteLock(target / "models"):  # the next writer completes it
            pass
        assert files(target).keys() == files(first if trained.sha256 == checksum(first) else second).keys()
        assert hidden(target) == []
    assert len(seen) > 20 // stride
    assert set(seen) == known.keys()
    # from the first step at which the new model is seen, it is always seen
    is_new = [sha256 == checksum(second) for sha256 in seen]
    assert is_new == sorted(is_new)


# -- reading meanwhile -------------------------------------------------------------------------------------------------


def write(bundle, text):
    (bundle / "models").mkdir(exist_ok=True)
    for name in MODEL_FILES[:2]:
        new = bundle / "new"
        new.write_text(text)
        new.replace(bundle / "models" / name)


def test_files_that_are_replaced_while_they_are_read_are_read_again(tmp_path):
    write(tmp_path, "old")
    calls = []

    def read(folder):
        calls.append((folder / MODEL_FILES[0]).read_text())
        if len(calls) < 3:
            write(tmp_path, f"new {len(calls)}")
        if len(calls) == 2:
            raise ValueError("the weights do not fit the configuration")
        return [calls[-1], (folder / MODEL_FILES[1]).read_text()]

    assert read_consistently(tmp_path, read, MODEL_FILES[:2]) == ["new 2", "new 2"]
    assert calls == ["old", "new 1", "new 2"]
