"""The files that a training saves, on disks that fill up and in processes that are killed."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from forked_program import die_at_call
from scan_files import no_file_larger_than
from torch import nn

from monai_diffae.bundle import TrainingDescription
from monai_diffae.bundle.folders import WriteLock
from monai_diffae.bundle.layout import CHECKPOINT, METRICS, MODEL, MONAI_MODEL
from monai_diffae.bundle.model_file import read_model
from monai_diffae.errors import DivergenceError, MachineError
from monai_diffae.handlers import EMA, CheckpointKeeper, Validation


def keeper(directory, size=64, **options):
    network = nn.Linear(size, size)
    optimizer = torch.optim.AdamW(network.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    parts = (network, EMA(network), optimizer, scheduler, Validation(validator=None))
    return CheckpointKeeper(directory, *parts, TrainingDescription({"a": 1}), **options)


ENGINE = SimpleNamespace(state=SimpleNamespace(iteration=3, epoch_length=5))


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_files_have_averaged_and_trained_weights_without_pickle_and_say_which_data_were_used(tmp_path):
    kept = keeper(tmp_path)
    kept.description = TrainingDescription({"a": 1}, fingerprint="f" * 64)
    kept.parts["validation"].metrics = {"loss": 0.5, "probe_size (mm)": 0.7}  # a column of the user's table
    for network, value in (kept.parts["network"], 3.0), (kept.ema.network, 7.0):
        torch.nn.init.constant_(network.weight, value)
        network.register_buffer("mask", torch.tensor([0.0, -float("inf"), float("nan")]))  # may be what is not finite
    kept.save(ENGINE)
    model = read_model(tmp_path / MODEL)
    assert {k: v.shape for k, v in model.tensors.items()} == {"weight": (64, 64), "bias": (64,), "mask": (3,)}
    for weights in (model.tensors, torch.load(tmp_path / MONAI_MODEL, weights_only=True)):
        assert weights["weight"].unique().tolist() == [7.0]
    checkpoint = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert checkpoint["network"]["weight"].unique().tolist() == [3.0]
    assert checkpoint["trainer"]["iteration"] == 3
    assert json.loads(checkpoint["model"]) == {"a": 1}
    assert model.description == {"a": 1, "data": {"fingerprint": "f" * 64}, "figures": {"loss": 0.5}}
    assert sorted(files(tmp_path)) == [CHECKPOINT, METRICS, MONAI_MODEL, MODEL]


@pytest.mark.goal(id="R3")
@pytest.mark.parametrize("limit", [0, 30_000])
def test_a_full_disk_keeps_the_old_files_and_is_one_line(tmp_path, limit):
    kept = keeper(tmp_path)
    kept.save(ENGINE)
    before = files(tmp_path)
    message = r"^\w+\.\w+: cannot be written [^\n]*free space[^\n]*$"
    with no_file_larger_than(limit), pytest.raises(MachineError, match=message):
        kept.save(ENGINE)
    after = files(tmp_path)
    assert after.keys() == before.keys()
    assert after[CHECKPOINT] == before[CHECKPOINT]
    read_model(tmp_path / MODEL)
    torch.load(tmp_path / CHECKPOINT, weights_only=True)


@pytest.mark.goal(id="R3")
def test_a_disk_that_does_not_give_back_what_was_written_keeps_the_old_files(tmp_path, monkeypatch):
    kept = keeper(tmp_path)
    kept.save(ENGINE)
    before = files(tmp_path)
    save = torch.save

    def damaged(content, stream):
        save(content, stream)
        stream.seek(stream.tell() // 2)
        stream.write(b"\x7f")

    monkeypatch.setattr(torch, "save", damaged)
    with pytest.raises(MachineError, match=r"^checkpoint\.pt: cannot be written \(Input/output error\); free space or"):
        kept.save(ENGINE)
    assert files(tmp_path) == before


def test_other_ranks_never_write(tmp_path):
    kept = keeper(tmp_path)
    kept.enabled = False
    kept.save(ENGINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.goal(id="R8")
@pytest.mark.parametrize(("value", "averaged", "enabled"), [(float("nan"), True, True), (float("inf"), False, False)])
def test_weights_that_are_not_finite_are_refused_on_every_rank(tmp_path, value, averaged, enabled):
    kept = keeper(tmp_path)
    kept.save(ENGINE)
    before = files(tmp_path)
    kept.enabled = enabled
    network = kept.ema.network if averaged else kept.parts["network"]
    with torch.no_grad():
        network.weight[3, 4] = value
    with pytest.raises(DivergenceError, match="weights are not finite at step 3; the last checkpoint is kept"):
        kept.save(ENGINE)
    assert files(tmp_path) == before


def save_until(call, directory):
    """In a process of its own, an --overwrite training saves for the first time, and is killed at a call."""
    pid = os.fork()
    if pid == 0:
        kept = keeper(directory)
        kept.description, kept.overwrite = TrainingDescription({"a": "new"}), True
        torch.nn.init.ones_(kept.ema.network.weight)
        die_at_call(call)
        kept.save(ENGINE)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_new(directory):
    """Whether a reader loads the new weights; they always come with their own description."""
    model = read_model(directory / MODEL)
    assert (model.description["a"] == "new") == bool((model.tensors["weight"] == 1).all())
    return model.description["a"] == "new"


@pytest.mark.slow
@pytest.mark.goal(id="R3")
def test_a_kill_in_the_first_save_of_an_overwrite_leaves_the_old_or_the_new_model(tmp_path, record_property):
    """The weights of one model with the description of another would silently give wrong results."""
    old = keeper(tmp_path / "old" / "models")
    old.description = TrainingDescription({"a": "old"})
    old.save(ENGINE)
    seen, call, code = [], 0, None
    while code != 0:
        call += 1
        models = shutil.copytree(tmp_path / "old", tmp_path / str(call)) / "models"
        code = save_until(call, models)
        assert code in (0, -signal.SIGKILL)
        seen.append(is_new(models))
        if seen[-1]:  # a training that resumes writes neither again
            assert (torch.load(models / MONAI_MODEL, weights_only=True)["weight"] == 1).all()
        with WriteLock(models):  # the next training
            assert is_new(models) == seen[-1]
        assert sorted(file.name for file in models.iterdir() if file.name.startswith(".")) == [".lock"]
    assert seen == sorted(seen)  # the old model up to a call, the new one from then on
    assert set(seen) == {False, True}
    assert len(seen) > 8
    record_property("figure", f"{call - 1} of {call - 1} kills in the first save of --overwrite leave one whole model")
