"""A training that is stopped anywhere and run again ends with the weights and curves of the uninterrupted one."""

import logging
import multiprocessing
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from complaints import complaint
from forked_program import die
from ignite.engine import Events
from tiny_bundles import weights

from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.engines import DiffusionTrainer
from monai_diffae.errors import DivergenceError
from monai_diffae.handlers import validation

ROOT = Path(__file__).parents[2] / "bundles" / "diffae_2d"
# 10 training images in batches of 2: 5 steps per epoch; steps 1+2, 3+4, 5, 6+7, ... are one update each
RUN = {
    "max_epochs": 3, "batch_size": 2, "network_def#unet#dropout": 0.2, "accumulation_steps": 2, "val_interval": 1,
    "report_every": 2, "warmup_steps": 2,
}  # fmt: skip


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def cohort(small_cohort, tmp_path_factory):
    """The small cohort as uncompressed files, which all have the same size."""
    folder = tmp_path_factory.mktemp("uncompressed")
    table = pd.read_csv(small_cohort)
    for image in table["image"]:
        nib.save(nib.load(small_cohort.parent / image), folder / Path(image).name.removesuffix(".gz"))
    table["image"] = [Path(image).name.removesuffix(".gz") for image in table["image"]]
    table.to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def train(make_workflow_anywhere, cohort):
    """Trains into a folder, and returns the workflow.

    ``handlers`` are added to the trainer: (event, function). ``save_at`` are steps after which the clock would save.
    """

    def run(out, *handlers, save_at=(), **overrides):
        workflow = make_workflow_anywhere({**RUN, "dataset_dir": str(cohort), "output_dir": str(out), **overrides})
        trainer = workflow.parser.get_parsed_content("train#trainer")
        keeper = workflow.parser.get_parsed_content("train#checkpoint")

        def save_soon(engine):
            keeper._saved_at = -1e9 if engine.state.iteration in save_at else time.monotonic()

        trainer.add_event_handler(Events.ITERATION_STARTED, save_soon)
        for event, function in handlers:
            trainer.add_event_handler(event, function)
        try:
            workflow.run()
        except RuntimeError as error:  # MONAI's wrapping
            raise error.__cause__ or error from None
        return workflow

    return run


@pytest.fixture(scope="module")
def trained_whole(train, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    train(out)
    return out


@pytest.fixture
def whole(trained_whole, tmp_path):
    """A copy of the output of an uninterrupted training."""
    return Path(shutil.copytree(trained_whole, tmp_path / "whole"))


def assert_same_weights(first, second):
    torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=0)


def assert_same_curves(first, second):
    tables = [pd.read_csv(folder / "curves.csv").drop(columns="images_per_s") for folder in (first, second)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert tables[0].dropna(subset=["validation_loss"])["step"].tolist() == [5, 10, 15]


def assert_loads(folder):
    shutil.copytree(ROOT / "configs", folder / "configs", dirs_exist_ok=True)
    load_bundle(folder, "cpu")


def saved_step(out):
    checkpoint = torch.load(out / "models" / "checkpoint.pt", weights_only=True)
    for state in (checkpoint["network"], checkpoint["ema"]["network"], weights(out)):
        assert all(weight.isfinite().all() for weight in state.values())
    return checkpoint["trainer"]["iteration"]


@pytest.mark.goal(id="R1")
def test_a_killed_training_ends_as_the_whole_one(train, tmp_path, trained_whole):
    """No checkpoint is taken between accumulated gradients."""
    killed = tmp_path, (Events.ITERATION_COMPLETED(once=9), die)
    process = multiprocessing.get_context("fork").Process(target=train, args=killed, kwargs={"save_at": (6, 7)})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    checkpoint = torch.load(tmp_path / "models" / "checkpoint.pt", weights_only=True)
    assert checkpoint["trainer"]["iteration"] == 7
    train(tmp_path)
    assert_same_weights(trained_whole, tmp_path)
    assert_same_curves(trained_whole, tmp_path)


@pytest.mark.goal(id="R1")
def test_a_training_asked_to_stop_at_the_last_step_of_an_epoch_is_validated_first(train, tmp_path, trained_whole):
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, (Events.ITERATION_STARTED(once=5), lambda: signal.raise_signal(signal.SIGTERM)))
    assert stopped.value.code == 143
    assert pd.read_csv(tmp_path / "curves.csv")["validation_loss"].count() == 1
    train(tmp_path)
    assert_same_weights(trained_whole, tmp_path)
    assert_same_curves(trained_whole, tmp_path)


@pytest.mark.goal(id="R3")
def test_overwrite_begins_again_and_deleted_results_are_written_again_as_a_whole(train, whole, trained_whole):
    deleted = []

    def delete():
        (whole / "cache").rename(whole.parent / "cache")  # the images of the training
        deleted.append(shutil.rmtree(whole))
        whole.mkdir()
        (whole.parent / "cache").rename(whole / "cache")

    train(whole, (Events.ITERATION_COMPLETED(once=7), delete), overwrite=True)
    assert len(deleted) == 1  # it did train
    assert {"model.safetensors", "model.pt", "checkpoint.pt"} <= {file.name for file in (whole / "models").iterdir()}
    assert_loads(whole)
    assert_same_weights(trained_whole, whole)


@pytest.mark.goal(id="R3")
def test_a_failed_overwrite_leaves_a_bundle_that_loads(train, whole, trained_whole):
    with pytest.raises(DivergenceError, match="not finite"):
        train(whole, overwrite=True, learning_rate=1e30, z_channels=16)
    assert_loads(whole)
    assert_same_weights(trained_whole, whole)


@pytest.mark.goal(id="R8")
def test_a_gradient_that_is_not_finite_ends_the_command_with_7_and_one_line_and_it_resumes(
    run, small_cohort, tiny_settings, tmp_path, monkeypatch
):
    """In the last step, so that no later loss shows it."""
    settings = {**tiny_settings, **RUN, "max_epochs": 2, "accumulation_steps": 1, "report_every": 1}
    overrides = [f"{key}={str(value).replace(' ', '')}" for key, value in settings.items()]
    bundle, plain_run = init_bundle(tmp_path / "bundle", "diffae_2d"), DiffusionTrainer.run
    command = ("train", "--bundle", bundle, "--cohort", small_cohort, "--overrides", *overrides)

    def poisoned_run(trainer):
        last = list(trainer.network.parameters())[-1]
        last.register_hook(lambda gradient: gradient / (trainer.state.iteration != 10))
        plain_run(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTrainer, "run", poisoned_run)
        code, _, errors = run(*command)
    assert code == 7
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == [errors.splitlines()[-1]]
    assert "the gradients are not finite at step 10" in errors
    assert "lower learning_rate" in errors
    assert "nan" not in errors.split("error: ")[0]  # not even validated with the bad weights
    assert saved_step(bundle) == 5
    code, _, errors = run(*command)
    assert (code, saved_step(bundle)) == (0, 10), errors


@pytest.mark.goal(id="R4")
def test_a_resumed_training_has_its_own_epochs_and_rates(train, whole):
    """An unreadable table of curves does not stop it."""
    (whole / "curves.csv").write_bytes(b"")
    changes = {"max_epochs": 4, "learning_rate": 3e-5, "weight_decay": 0.1, "lr_schedule": "constant"}
    workflow = train(whole, **changes, report_every=1)
    assert workflow.parser.get_parsed_content("train#trainer").state.iteration == 20
    (group,) = workflow.parser.get_parsed_content("optimizer").param_groups
    assert group["lr"] == pytest.approx(3e-5)
    assert group["weight_decay"] == 0.1
    assert pd.read_csv(whole / "curves.csv").dropna(subset=["loss"])["step"].tolist() == [16, 17, 18, 19, 20]


def without_checkpoint(models):
    (models / "checkpoint.pt").unlink()


def cut_checkpoint(models):
    file = models / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.goal(id="R3")
@pytest.mark.goal(id="R4")
@pytest.mark.parametrize(
    ("overrides", "change", "message"),
    [
        ({"percentiles": [1, 99]}, None, "belongs to another model with other values of percentiles;"),
        ({"batch_size": 5}, None, "5 steps per epoch, but this run has 2"),
        (
            {"percentiles": [0, 100]},
            without_checkpoint,
            "model.safetensors: was trained with other values of percentiles; use",
        ),
        ({"max_epochs": 4}, cut_checkpoint, "checkpoint.pt: cannot be read as a checkpoint"),
    ],
)
def test_a_training_that_does_not_fit_the_folder_is_refused(train, whole, overrides, change, message):
    if change is not None:
        change(whole / "models")
    before = (whole / "models" / "model.pt").read_bytes()
    assert message in complaint(train, whole, **overrides)
    assert (whole / "models" / "model.pt").read_bytes() == before


@pytest.mark.goal(id="R4")
def test_other_patients_in_training_are_refused(train, whole, cohort, tmp_path):
    table = pd.read_csv(cohort)
    table["image"] = [str(cohort.parent / image) for image in table["image"]]
    train_rows, val_rows = table.index[table["split"] == "train"], table.index[table["split"] == "val"]
    table.loc[train_rows[: len(val_rows)], "split"], table.loc[val_rows, "split"] = "val", "train"
    table.to_csv(tmp_path / "swapped.csv", index=False)
    line = complaint(train, whole, dataset_dir=str(tmp_path / "swapped.csv"), max_epochs=4)
    assert "was trained on other data, or on another split" in line


def test_a_cohort_may_move_but_replaced_scans_of_the_same_size_are_refused(train, whole, cohort, tmp_path, caplog):
    """Goal R5; by a complete training and by one that would resume."""
    moved = Path(shutil.copytree(cohort.parent, tmp_path / "moved")) / cohort.name
    before, config = (whole / "models" / "checkpoint.pt").stat().st_mtime_ns, whole / "configs" / "train.json"
    values = config.read_bytes()
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train(whole, dataset_dir=str(moved), learning_rate=0.5)  # moving changes nothing
    assert config.read_bytes() == values
    assert "the training is complete, so these are ignored: learning_rate" in caplog.text
    assert "training is complete after 15 steps; nothing to do. Increase max_epochs" in caplog.text
    assert (whole / "models" / "checkpoint.pt").stat().st_mtime_ns == before
    table = pd.read_csv(moved)
    first = moved.parent / table.loc[table["split"] == "train", "image"].iloc[0]
    size = first.stat().st_size
    scan = nib.load(first)
    pixels = np.random.default_rng(99).normal(size=scan.shape).astype(scan.get_data_dtype())
    nib.save(nib.Nifti1Image(pixels, scan.affine, scan.header), first)
    assert first.stat().st_size == size
    for epochs in (3, 4):
        line = complaint(train, whole, dataset_dir=str(moved), max_epochs=epochs)
        assert line.startswith("checkpoint.pt: 1 of ")
        assert "scans are not those of the training" in line


@pytest.mark.slow
def test_patience_stops_early_and_a_rerun_knows(train, tmp_path, caplog):
    settings = {"max_epochs": 9, "early_stop_patience": 1, "learning_rate": 0.0, "batch_size": 5}
    workflow = train(tmp_path, **settings)
    assert workflow.parser.get_parsed_content("train#trainer").state.epoch == 2
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train(tmp_path, **settings)
    assert "training is complete after 4 steps; nothing to do. Increase early_stop_patience" in caplog.text


def test_max_minutes_ends_a_training_that_more_minutes_complete(train, tmp_path, trained_whole, monkeypatch, caplog):
    """A clock on which each step takes a minute; the last step is within an epoch."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(validation, "time", SimpleNamespace(monotonic=lambda: clock.now))
    minute = (Events.ITERATION_COMPLETED, lambda: setattr(clock, "now", clock.now + 60))
    train(tmp_path, minute, max_minutes=6)
    assert "max_minutes: 6 minutes are over at step 7 of 15; the other steps" in caplog.text
    validated = pd.read_csv(tmp_path / "curves.csv").dropna(subset=["validation_loss"])["step"].tolist()
    assert validated == [5, 7]
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train(tmp_path, minute, max_minutes=6)
    assert "complete after 7 steps; nothing to do. Increase max_minutes" in caplog.text
    train(tmp_path, minute, max_minutes=100)
    assert_same_weights(trained_whole, tmp_path)
