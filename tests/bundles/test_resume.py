"""A training that is stopped anywhere and run again ends with the very weights of the uninterrupted one."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Events

from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.scans import write_scan
from monai_diffae.errors import ConfigError, DivergenceError, ScanError, find_diffae_error
from monai_diffae.handlers import TrainingCurves, validation

# 10 training images in batches of 2: 5 steps an epoch; dropout and augmentation are on
RUN = {
    "max_epochs": 3,
    "batch_size": 2,
    "network_def#unet#dropout": 0.2,
    "val_interval": 1,
    "report_every": 1,
    "warmup_steps": 2,
}


def weights(folder):
    return torch.load(Path(folder) / "models" / "model.pt", weights_only=True)


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


class Killed(Exception):
    pass


def train(make_workflow, out, stop_at=None, save_at=None, **overrides):
    workflow = make_workflow({**RUN, "output_dir": str(out), **overrides})
    trainer = workflow.parser.get_parsed_content("train#trainer")
    if save_at is not None:  # as the clock would
        keeper = workflow.parser.get_parsed_content("train#checkpoint")

        def save_soon(engine):
            keeper._saved_at = -1e9 if engine.state.iteration == save_at else time.monotonic()

        trainer.add_event_handler(Events.ITERATION_STARTED, save_soon)
    if stop_at is not None:

        def stop():
            raise Killed

        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), stop)
    try:
        workflow.run()
    except RuntimeError as error:  # MONAI's wrapping
        raise error.__cause__ or error from None
    return workflow


@pytest.fixture(scope="module")
def trained_whole(make_workflow_anywhere, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    train(make_workflow_anywhere, out)
    return out


@pytest.fixture
def whole(trained_whole, tmp_path):
    return Path(shutil.copytree(trained_whole, tmp_path / "whole"))


@pytest.mark.goal(id="R1")
@pytest.mark.parametrize(("save_at", "stop_at"), [(None, 2), (None, 7), (8, 9), (6, 14)])
def test_a_run_stopped_at_any_step_ends_as_the_whole_run(make_workflow, tmp_path, whole, save_at, stop_at):
    out = tmp_path / "part"
    with pytest.raises(Killed):
        train(make_workflow, out, stop_at, save_at)
    train(make_workflow, out)
    assert_same_weights(whole, out)
    curves = [pd.read_csv(folder / "curves.csv") for folder in (whole, out)]
    losses = [c.dropna(subset=["loss"]).set_index("step")["loss"] for c in curves]
    assert losses[1].index.is_unique
    assert (losses[0].reindex(losses[1].index) == losses[1]).all()
    validations = [c.dropna(subset=["validation_loss"])[["step", "validation_loss"]] for c in curves]
    assert validations[0]["step"].tolist() == [5, 10, 15]
    pd.testing.assert_frame_equal(*(v.reset_index(drop=True) for v in validations))


@pytest.mark.goal(id="R1")
def test_a_checkpoint_is_never_taken_between_accumulated_gradients(make_workflow, tmp_path):
    train(make_workflow, tmp_path / "whole", accumulation_steps=2)
    with pytest.raises(Killed):
        train(make_workflow, tmp_path / "part", stop_at=8, save_at=6, accumulation_steps=2)
    # steps 1+2, 3+4, 5 | 6+7, ...: saved after 7
    train(make_workflow, tmp_path / "part", accumulation_steps=2)
    assert_same_weights(tmp_path / "whole", tmp_path / "part")


def test_a_complete_run_is_left_as_it_is_and_overwrite_starts_anew(make_workflow, whole, caplog):
    saved_at = (whole / "models" / "checkpoint.pt").stat().st_mtime_ns
    before = weights(whole)
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train(make_workflow, whole)
    assert "training is complete after 15 steps; nothing to do. Increase max_epochs" in caplog.text
    assert (whole / "models" / "checkpoint.pt").stat().st_mtime_ns == saved_at
    train(make_workflow, whole, overwrite=True)
    assert (whole / "models" / "checkpoint.pt").stat().st_mtime_ns > saved_at
    after = weights(whole)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_more_epochs_go_on_from_a_complete_run(make_workflow, whole):
    workflow = train(make_workflow, whole, max_epochs=4, lr_schedule="constant")
    assert workflow.parser.get_parsed_content("train#trainer").state.iteration == 20


@pytest.mark.goal(id="R4")
def test_a_training_with_other_random_numbers_resumes_with_a_warning(make_workflow, whole, caplog):
    train(make_workflow, whole, max_epochs=4, lr_schedule="constant")
    assert "another version" not in caplog.text
    path = whole / "models" / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["random_numbers"]  # as the version before wrote it
    torch.save(checkpoint, path)
    train(make_workflow, whole, max_epochs=5, lr_schedule="constant")
    assert "checkpoint.pt: another version of monai_diffae began this training" in caplog.text


@pytest.mark.goal(id="R4")
def test_another_model_config_is_refused_with_the_keys_that_differ(make_workflow, whole):
    with pytest.raises(ConfigError, match="belongs to another model with other values of percentiles;") as caught:
        train(make_workflow, whole, percentiles=[1, 99])
    assert "\n" not in str(caught.value)
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI wraps ours
        train(make_workflow, whole, base_channels=24)
    error = find_diffae_error(wrapped.value)
    assert "belongs to another model with other values of base_channels;" in str(error)
    assert "\n" not in str(error)


def test_a_changed_learning_rate_counts_from_the_resumed_step_on(make_workflow, tmp_path):
    with pytest.raises(Killed):
        train(make_workflow, tmp_path / "out", stop_at=7)
    workflow = train(make_workflow, tmp_path / "out", learning_rate=3e-5, weight_decay=0.1, lr_schedule="constant")
    (group,) = workflow.parser.get_parsed_content("optimizer").param_groups
    assert group["lr"] == pytest.approx(3e-5)
    assert group["weight_decay"] == 0.1


@pytest.mark.goal(id="R4")
def test_weights_without_a_checkpoint_are_not_trained_with_another_configuration(make_workflow, whole):
    (whole / "models" / "checkpoint.pt").unlink()
    before = (whole / "models" / "model.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"model\.pt: was trained with other values of percentiles; use its values"):
        train(make_workflow, whole, percentiles=[0, 100])
    assert (whole / "models" / "model.pt").read_bytes() == before
    train(make_workflow, whole, overwrite=True)


@pytest.mark.goal(id="R1")
def test_a_stop_at_an_epochs_last_step_is_validated_first(make_workflow, tmp_path):
    workflow = make_workflow({**RUN, "output_dir": str(tmp_path / "out")})
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_STARTED(once=5), lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises((SystemExit, RuntimeError)) as stopped:
        workflow.run()
    error = stopped.value if isinstance(stopped.value, SystemExit) else stopped.value.__cause__
    assert isinstance(error, SystemExit)
    assert error.code == 143
    train(make_workflow, tmp_path / "out")
    curves = pd.read_csv(tmp_path / "out" / "curves.csv").dropna(subset=["validation_loss"])
    assert curves["step"].tolist() == [5, 10, 15]


@pytest.mark.goal(id="R3")
@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_an_unreadable_checkpoint_is_one_line(make_workflow, whole, content):
    path = whole / "models" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(ScanError, match=r"checkpoint\.pt: cannot be read as a checkpoint"):
        train(make_workflow, whole, max_epochs=4)


def test_an_unreadable_table_of_curves_does_not_stop_a_training(make_workflow, whole):
    (whole / "curves.csv").write_bytes(b"")
    train(make_workflow, whole, max_epochs=4, lr_schedule="constant")
    assert pd.read_csv(whole / "curves.csv").dropna(subset=["loss"])["step"].tolist() == [16, 17, 18, 19, 20]


@pytest.mark.goal(id="R4")
def test_other_patients_in_training_are_refused(make_workflow, whole, small_cohort, tmp_path):
    table = pd.read_csv(small_cohort)
    table["image"] = [str(small_cohort.parent / image) for image in table["image"]]
    train_rows, val_rows = table.index[table["split"] == "train"], table.index[table["split"] == "val"]
    table.loc[train_rows[: len(val_rows)], "split"], table.loc[val_rows, "split"] = "val", "train"
    table.to_csv(tmp_path / "swapped.csv", index=False)
    with pytest.raises(ConfigError, match="was trained on other data, or on another split"):
        train(make_workflow, whole, dataset_dir=str(tmp_path / "swapped.csv"), max_epochs=4)


@pytest.mark.parametrize("epochs", [3, 4])  # of a complete training, and of one that would resume
def test_scans_that_were_replaced_by_others_of_the_same_size_are_refused(make_workflow, small_cohort, tmp_path, epochs):
    """Goal R5."""
    cohort = Path(shutil.copytree(small_cohort.parent, tmp_path / "cohort")) / small_cohort.name
    table = pd.read_csv(cohort)
    files = [cohort.parent / image for image in table["image"][table["split"] == "train"]]
    for number, file in enumerate(files):  # uncompressed images always have the same size
        pixels = np.random.default_rng(number).normal(size=(1, 16, 16, 1))
        write_scan(file.with_name(f"{file.stem.partition('.')[0]}.nii"), pixels, np.eye(4))
    table["image"] = [f"{Path(image).parent / Path(image).stem.partition('.')[0]}.nii" if split == "train" else image
                      for image, split in zip(table["image"], table["split"], strict=True)]  # fmt: skip
    table.to_csv(cohort, index=False)
    train(make_workflow, tmp_path / "out", dataset_dir=str(cohort))
    (tmp_path / "moved").mkdir()
    moved = cohort.parent.rename(tmp_path / "moved" / "cohort") / cohort.name
    train(make_workflow, tmp_path / "out", dataset_dir=str(moved))  # complete, and moving changes nothing
    first = moved.parent / table["image"][0]
    write_scan(first, np.random.default_rng(99).normal(size=(1, 16, 16, 1)), np.eye(4))
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: 1 of \d+ scans are not those of the training") as caught:
        train(make_workflow, tmp_path / "out", dataset_dir=str(moved), max_epochs=epochs)
    assert "\n" not in str(caught.value)


@pytest.mark.goal(id="R1")
@pytest.mark.parametrize(("save_at", "stop_at"), [(3, 4), (7, 9), (13, 14)])
def test_curves_have_no_holes_after_a_kill(make_workflow, tmp_path, save_at, stop_at, monkeypatch):
    """Goal R1: a killed process writes nothing more, and its last checkpoint is within an epoch."""
    settings = {"report_every": 2}
    train(make_workflow, tmp_path / "whole", **settings)
    attach = TrainingCurves.attach
    monkeypatch.setattr(TrainingCurves, "attach", _attach_without_last_words)
    with pytest.raises(Killed):
        train(make_workflow, tmp_path / "part", stop_at, save_at, **settings)
    monkeypatch.setattr(TrainingCurves, "attach", attach)
    assert not torch.load(tmp_path / "part/models/checkpoint.pt", weights_only=True)["trainer"]["iteration"] % save_at
    train(make_workflow, tmp_path / "part", **settings)
    whole, part = (pd.read_csv(tmp_path / name / "curves.csv") for name in ("whole", "part"))
    pd.testing.assert_frame_equal(whole.drop(columns="images_per_s"), part.drop(columns="images_per_s"))


def _attach_without_last_words(self, engine, attach=TrainingCurves.attach):
    attach(self, engine)
    handlers = engine._event_handlers[Events.EXCEPTION_RAISED]
    handlers[:] = [handler for handler in handlers if "TrainingCurves" not in repr(handler[0])]


@pytest.mark.goal(id="R3")
def test_a_folder_that_is_deleted_during_a_training_is_written_again_as_a_whole(make_workflow, tmp_path):
    out = tmp_path / "out"
    workflow = make_workflow({**RUN, "output_dir": str(out)})
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=7), lambda: shutil.rmtree(out))
    workflow.run()
    assert {"config.json", "training.json", "model.pt", "checkpoint.pt"} <= {f.name for f in (out / "models").iterdir()}
    load_bundle(make_loadable(out), "cpu")


def make_loadable(folder):
    """The folder with the configuration that describes the bundle."""
    shutil.copytree(ROOT / "configs", folder / "configs", dirs_exist_ok=True)
    return folder


@pytest.mark.goal(id="R3")
def test_a_failed_overwrite_leaves_a_bundle_that_loads(make_workflow, whole):
    with pytest.raises(DivergenceError, match="not finite"):
        train(make_workflow, whole, overwrite=True, learning_rate=1e30, **{"z_channels": 16})
    load_bundle(make_loadable(whole), "cpu")


@pytest.mark.goal(id="R4")
def test_another_number_of_steps_is_refused(make_workflow, whole):
    with pytest.raises(ConfigError, match="5 steps per epoch, but this run has 2"):
        train(make_workflow, whole, batch_size=5)


def test_patience_stops_early_and_a_rerun_knows(make_workflow, tmp_path, caplog):
    settings = {"max_epochs": 9, "early_stop_patience": 2, "learning_rate": 0.0}
    workflow = train(make_workflow, tmp_path / "out", **settings)
    assert workflow.parser.get_parsed_content("train#trainer").state.epoch == 3
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train(make_workflow, tmp_path / "out", **settings)
    assert "training is complete after 15 steps; nothing to do. Increase early_stop_patience" in caplog.text


@pytest.mark.parametrize(
    ("minutes", "last_step"), [(6, 7), (9, 10)]
)  # the next step is the last: within an epoch and at its end
def test_max_minutes_ends_a_training_that_more_minutes_complete(
    make_workflow, tmp_path, whole, monkeypatch, caplog, minutes, last_step
):
    """A clock on which each step takes a minute."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(validation, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def run(**settings):
        workflow = make_workflow({**RUN, "output_dir": str(tmp_path / "out"), **settings})
        trainer = workflow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: setattr(clock, "now", clock.now + 60))
        workflow.run()
        return trainer.state.iteration

    assert run(max_minutes=minutes) == last_step
    assert f"max_minutes: {minutes:g} minutes are over at step {last_step} of 15; the other steps" in caplog.text
    validated = pd.read_csv(tmp_path / "out" / "curves.csv").dropna(subset=["validation_loss"])["step"].tolist()
    assert validated == [5, last_step]
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        run(max_minutes=minutes)
    assert f"complete after {last_step} steps; nothing to do. Increase max_minutes" in caplog.text
    assert run(max_minutes=100) == 15
    assert_same_weights(whole, tmp_path / "out")


ROOT = Path(__file__).parents[2] / "bundles" / "diffae_2d"


def bundle_command(cohort, out, **values):
    settings = {
        "bundle_root": ROOT, "dataset_dir": cohort, "output_dir": out, "image_size": [16, 16],
        "base_channels": 8, "channel_mult": [1, 2], "z_channels": 8,
        "network_def#unet#time_embed_channels": 16, "network_def#unet#dropout": 0.2, "max_epochs": 30, "batch_size": 2,
        "val_interval": 20, "num_pictures": 0, "mlflow": False, "device": "cpu", "checkpoint_minutes": 0.0005, **values,
    }  # fmt: skip
    arguments = [str(x) for k, v in settings.items() for x in (f"--{k}", v)]
    return [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "training",
        "--config_file",
        str(ROOT / "configs/train.json"),
        *arguments,
    ]


@pytest.mark.goal(id="R1")
@pytest.mark.slow
@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_goes_on_with_the_same_command(small_cohort, tmp_path, number, is_warm):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, part, start = tmp_path / "whole", tmp_path / "part", {}
    if is_warm:
        source = bundle_command(small_cohort, tmp_path / "source", max_epochs=1, seed=5)
        subprocess.run(source, check=True, capture_output=True, env=env)
        start = {"start_from": tmp_path / "source"}
    subprocess.run(bundle_command(small_cohort, whole, **start), check=True, capture_output=True, env=env)
    process = subprocess.Popen(
        bundle_command(small_cohort, part, **start), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env
    )
    while not (part / "models" / "checkpoint.pt").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(timeout=120) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    step = torch.load(part / "models" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"]
    assert 0 < step < 150
    subprocess.run(bundle_command(small_cohort, part, **start), check=True, capture_output=True, env=env)
    assert_same_weights(whole, part)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": [15, 15]}, "image_size"),
        ({"learning_rat": 1}, "learning_rat"),
        ({"dataset_dir": "/gone.csv"}, "gone.csv"),
    ],
)
def test_bad_input_ends_in_one_line_on_the_command_line(small_cohort, tmp_path, wrong, message):
    run = subprocess.run(bundle_command(small_cohort, tmp_path / "out", **wrong), capture_output=True, text=True)
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert run.returncode != 0
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in run.stderr
