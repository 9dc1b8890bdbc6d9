"""Publishing a model: readers get the old or the new one, whatever happens to the publisher."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
from complaints import complaint
from filelock import FileLock
from forked_program import die_at_call
from tiny_bundles import contents, copy_tiny, rewrite

from monai_diffae.bundle import AnomalyDetector, checksum, load_bundle, load_latent, publish


@pytest.fixture
def second(bundle, tmp_path):
    """A bundle with a network of the same shape as that of ``bundle``, but with other weights and percentiles."""
    other = Path(shutil.copytree(bundle, tmp_path / "second"))
    rewrite(other, lambda tensors: {name: value + 0.01 for name, value in tensors.items()}, percentiles=[1, 99])
    (other / "models" / "anomaly.safetensors").unlink()
    return other


def test_the_model_is_replaced_with_its_values_and_what_belongs_to_the_old_one_is_gone(second, tmp_path):
    target, first = (copy_tiny(tmp_path / name, "2d_all") for name in ("target", "first"))
    (target / "models" / "checkpoint.pt").write_bytes(b"of the old model")
    before = contents(second)
    publish(second, target)
    assert contents(second) == before
    assert checksum(target) == checksum(second)
    assert json.loads((target / "configs" / "train.json").read_text())["percentiles"] == [1, 99]
    assert {"checkpoint.pt", "anomaly.safetensors"}.isdisjoint(os.listdir(target / "models"))
    assert "the latent model belongs to another autoencoder" in complaint(load_latent, target)
    publish(first / "models" / "model.safetensors", target)
    AnomalyDetector.load(load_bundle(target, "cpu", {"inferer#decoder": "fast"}))
    load_latent(target)
    assert (target / "models" / "model.pt").read_bytes() == (first / "models" / "model.pt").read_bytes()


def test_what_cannot_be_published_changes_nothing(bundle, second, impatient, fail_to_save):
    before, model = contents(bundle), second / "models" / "model.safetensors"
    with FileLock(bundle / "models" / ".lock"):
        assert complaint(publish, second, bundle).startswith("bundle: another process trains or publishes this bundle;")
    assert complaint(publish, bundle, bundle).startswith("bundle: cannot be published to itself")
    assert complaint(publish, bundle, second / "models").startswith("models: is not a bundle (no configs/train.json)")
    fail_to_save(OSError(5, "Input/output error"))
    assert "cannot be written" in complaint(publish, second, bundle)
    model.write_bytes(model.read_bytes()[:-1])
    assert complaint(publish, second, bundle).startswith("model.safetensors: is damaged")
    assert contents(bundle) == before


def publish_until(step, source, target):
    """Publish in a process of its own that is killed before the given call of functions that change files."""
    die_at_call(step)
    publish(source, target)


@pytest.mark.goal(id="R3")
@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_model(bundle, second, tmp_path, stride):
    old, new, seen, ended = checksum(bundle), checksum(second), [], None
    while ended != 0:
        target = Path(shutil.copytree(bundle, tmp_path / f"target-{len(seen)}"))
        arguments = (1 + stride * len(seen), second, target)
        process = multiprocessing.get_context("fork").Process(target=publish_until, args=arguments)
        process.start()
        process.join()
        ended = process.exitcode
        assert ended in (0, -signal.SIGKILL)
        trained = load_bundle(target, "cpu")
        assert trained.config["percentiles"] == ([1, 99] if trained.sha256 == new else [0.5, 99.5])
        seen.append(trained.sha256)
        publish(second, target)
        assert checksum(target) == new
        assert [name for name in os.listdir(target / "models") if name.startswith(".")] == [".lock"]
    assert len(seen) > 12 // stride
    assert set(seen) == {old, new}
    assert seen == sorted(seen, key=[old, new].index)  # from some step on, it is always the new model
