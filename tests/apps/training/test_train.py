"""``train``, ``init`` and ``train --minutes``, and trainings that another program watches."""

import csv
import gc
import json
import logging
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from forked_program import wait_until
from PIL import Image

from monai_diffae import Training, init
from monai_diffae.apps.training import train_with_callbacks
from monai_diffae.apps.training.plan import plan
from monai_diffae.apps.training.train import open_training, train, training_result
from monai_diffae.bundle import init_bundle, load_bundle
from monai_diffae.errors import BusyError, CohortError, ConfigError, MachineError


def configured(bundle):
    return json.loads((bundle / "configs" / "train.json").read_text())


def test_init_copies_a_shipped_bundle_and_overwrites_nothing(tmp_path):
    result = init(tmp_path / "mine", bundle="diffae_3d")
    folder, following = result.lines()
    assert folder == str(tmp_path / "mine")
    assert following.startswith("next: monai-diffae train ")
    assert following.endswith("# your scans.csv or folder")
    assert result.json() == {"path": str(tmp_path / "mine")}
    assert json.loads((tmp_path / "mine" / "configs" / "train.json").read_text())["spatial_dims"] == 3
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file: is a file; choose a new folder"):
        init(tmp_path / "file")


def test_what_is_not_there_is_one_line(tiny_bundle, tmp_path):
    for minutes in (None, 2):  # with minutes, it is not taken for a shipped one
        with pytest.raises(ConfigError, match=r"mine: there is no configs/train\.json; make a bundle with monai"):
            train(tmp_path / "mine", minutes=minutes)
    with pytest.raises(ConfigError, match=r"^chest_xray: there is no configs/train\.json; make a bundle with monai"):
        train("chest_xray", tiny_bundle.cohort)
    with pytest.raises(ConfigError, match=r"^overlays: there is no file gone\.json; "):
        train(tiny_bundle.directory, tiny_bundle.cohort, overlays=["gone.json"])
    with pytest.raises(ConfigError, match="cohort: is required"):
        train(init_bundle(tmp_path / "bundle", "diffae_2d"), minutes=2, device="cpu")
    with pytest.raises(ConfigError, match="^start_from: bundle is the folder that is trained; choose a new folder"):
        train(tiny_bundle.directory, tiny_bundle.cohort, start_from=tiny_bundle.directory, device="cpu")


@pytest.mark.parametrize(
    ("num_failed", "is_strict", "is_complete"),
    [(0, True, True), (10, False, True), (1, True, False), (11, False, False)],
)
def test_a_training_is_complete_if_few_cases_failed(num_failed, is_strict, is_complete):
    folder, next_line = Path("bundle"), "monai-diffae embed"
    result = training_result(folder, folder / "failures.csv", num_failed, 100, next_line, is_strict)
    line = f"{num_failed} of 100 cases could not be used: see failures.csv"
    assert result.incomplete == (None if is_complete else line)
    shown = ["bundle", "next: monai-diffae embed"]
    assert [*result.lines()] == ([line, *shown] if num_failed and is_complete else shown)


RANDOM = np.random.default_rng(0)
SMALL = {"base_channels": 4, "z_channels": 8, "test_fraction": 0.0}


def picture(path, *shape):
    Image.fromarray(RANDOM.integers(0, 256, shape, np.uint8)).save(path)


def odd_pictures(folder):
    """Pictures that only a training sees in its own way; tests/robustness/defects.py has damaged ones, also in 3D."""
    for i in range(6):
        picture(folder / f"good{i}.png", 20 + i, 30)
    picture(folder / "colour.png", 20, 30, 3)
    picture(folder / "colour.jpg", 20, 30, 3)
    picture(folder / "transparent.png", 20, 30, 4)
    Image.fromarray(RANDOM.integers(0, 60_000, (20, 20)).astype(np.uint16)).save(folder / "deep.png")
    values = RANDOM.normal(size=(20, 24, 5))
    values[..., 2] = 0
    for name, array in {"slice": values[..., :1], "empty_slice": values}.items():
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), folder / f"{name}.nii.gz")


@pytest.mark.goal(id="R21")
@pytest.mark.parametrize(
    ("colour", "bad"),
    [
        (None, {"transparent"}),
        pytest.param("refuse", {"transparent", "colour.jpg", "colour.png"}, marks=pytest.mark.slow),
        pytest.param("rgb", {"transparent"}, marks=pytest.mark.slow),
    ],
)
def test_training_leaves_out_scans_that_cannot_be_used(tmp_path, tiny_settings, colour, bad):
    scans = tmp_path / "Plantedfolder"
    scans.mkdir()
    odd_pictures(scans)
    bundle = tmp_path / "bundle"
    settings = {**tiny_settings, **SMALL, "batch_size": 2, "calibration_cases": 0}
    result = train(bundle, scans, colour=colour, overrides=settings)
    with open(result.failures, newline="") as stream:
        left_out = {row["case_id"] for row in csv.DictReader(stream)}
    assert left_out == bad
    assert result.num_failed == len(left_out)
    assert result.num_cases == 13  # slices count
    trained = load_bundle(bundle, "cpu")
    assert trained.config["in_channels"] == (3 if colour == "rgb" else 1)
    assert not (bundle / "mlflow.db").exists()  # our key `mlflow`, not MONAI's argument
    contents = {file.name: file.read_bytes() for file in bundle.rglob("*") if file.is_file()}
    assert [name for name, content in contents.items() if b"Plantedfolder" in content] == []


@pytest.fixture
def in_minutes(tiny_settings):
    """Settings of a training in minutes: 10 images of 16 x 16 in batches of 4."""
    chosen = ("max_epochs", "device")
    return {key: value for key, value in tiny_settings.items() if key not in chosen} | {"calibration_cases": 0}


@pytest.fixture
def slow(machine):
    """12 s per step: 3 epochs of 2 steps in 2 minutes."""
    machine.pixels_per_second = 4 * 16 * 16 * (4 / 16) ** 2 / 12
    return machine


def test_the_plan_of_minutes_becomes_the_settings(small_cohort, tmp_path, in_minutes, slow, monkeypatch, caplog):
    given = []
    caplog.set_level(logging.INFO, "monai_diffae")
    plan(small_cohort, minutes=2, device="cpu", overrides={"batch_size": 4})  # as start does before it trains

    def run_training(config, bundle, training, paths):
        given.append(training)
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_diffae.apps.training.train.run_training", run_training)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "new", small_cohort, minutes=2, device="cpu", overrides=in_minutes)
    assert given[0].overrides["max_epochs"] == 3
    assert given[0].overrides["max_minutes"] < 2
    assert caplog.text.count("measuring how fast this machine trains") == 1
    assert in_minutes.items() <= given[0].overrides.items()
    (tmp_path / "new" / "models").mkdir(exist_ok=True)
    (tmp_path / "new" / "models" / "checkpoint.pt").touch()
    slow.measured.clear()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "new", small_cohort, minutes=2, device="cpu")
    assert given[1].overrides == {}  # those of the folder's configuration
    assert slow.measured == []


@pytest.mark.slow
def test_a_training_that_is_faster_than_measured_uses_its_time(small_cohort, tmp_path, in_minutes, slow):
    bundle = train(tmp_path / "new", small_cohort, minutes=0.1, device="cpu", overrides=in_minutes).folder
    saved = torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)
    epochs = configured(bundle)["max_epochs"]
    assert saved["trainer"]["iteration"] == 2 * epochs > 2  # one epoch was planned
    assert saved["validation"]["seconds"] > 0.5 * 60 * configured(bundle)["max_minutes"]
    assert saved["optimizer"]["param_groups"][0]["lr"] < 1e-6  # the schedule has ended


@pytest.mark.parametrize(("dims", "made_for"), [(2, "tiny_bundle"), (3, "tiny_bundle_3d")])
def test_a_missing_bundle_is_made_also_without_minutes(dims, made_for, request, tmp_path, caplog):
    cohort = request.getfixturevalue(made_for).cohort
    with caplog.at_level(logging.INFO, "monai_diffae"), pytest.raises(MachineError):
        train(tmp_path / "new", cohort, device="cpu", batch_size=10**9)
    made, plain = configured(tmp_path / "new"), [tmp_path / "new" / "configs" / "overlays" / "fp32.json"]
    assert (made["spatial_dims"], made["words_weight"], "_meta_" in made) == (dims, 0.3, False)
    line = f"new: a new bundle, made from diffae_{dims}d with words.json, so that z_sem predicts more"
    assert line in caplog.messages
    with pytest.raises(MachineError):
        train(tmp_path / "own", cohort, device="cpu", batch_size=10**9, overlays=plain)
    assert "words_weight" not in configured(tmp_path / "own")


def test_a_given_value_wins_over_an_overlay_and_that_over_the_bundles_file(tmp_path):
    bundle, overlay = init_bundle(tmp_path / "bundle", "diffae_2d"), tmp_path / "mine.json"
    overlay.write_text(json.dumps({"max_epochs": 5, "learning_rate": 0.5}))
    values = {"bundle_root": str(bundle), "learning_rate": 0.25}
    config = open_training(bundle / "configs" / "train.json", [overlay], values).parser
    assert [config.get(key) for key in ("max_epochs", "learning_rate", "batch_size")] == [5, 0.25, 16]


def test_a_training_into_another_folder_resumes_with_the_values_of_that_folder(tmp_path, caplog):
    bundle, out = (init_bundle(tmp_path / name, "diffae_2d") for name in ("bundle", "out"))
    cohort, config = tmp_path / "scans.csv", out / "configs" / "train.json"
    cohort.touch()
    config.write_text(config.read_text().replace('"learning_rate": ', '"learning_rate": -'))
    with pytest.raises(ConfigError, match="learning_rate"):
        train(bundle, cohort, out)
    with pytest.raises(CohortError):  # a new training has the values of the bundle
        train(bundle, cohort, out, training=Training(overwrite=True))
    assert "out: is trained with its own values of learning_rate, not those of bundle; set overwrite" in caplog.text


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    ignored = shutil.ignore_patterns("cache", "models")
    return shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=ignored)


@pytest.fixture
def training(tiny_settings):
    settings = {"max_epochs": 4, "batch_size": 2, "report_every": 1, "calibration_cases": 0}
    return Training(overrides={**tiny_settings, **settings})


def in_thread(function, *args, **kwargs):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args, **kwargs).result()


def steps_saved(bundle):
    return torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"]


@pytest.fixture
def count_tensors():
    """Counts the tensors that were made since the test began; all older objects are left out, as they are many."""
    gc.freeze()

    def count():
        gc.collect()
        return sum(type(each) in (torch.Tensor, torch.nn.Parameter) for each in gc.get_objects())

    yield count
    gc.unfreeze()


@pytest.mark.goal(id="R27")
def test_a_watched_training_keeps_no_tensors_reports_stops_and_resumes_without_its_overrides(
    tiny_bundle, bundle, training, count_tensors, impatient, caplog
):
    """It keeps as many tensors after 8 steps as after 5. Meanwhile, a second training of the folder is refused."""
    caplog.set_level(logging.INFO, logger="monai_diffae")
    stop, reports, tensors, errors = threading.Event(), [], [], []

    def report(what):
        reports.append(what)
        if what.step in (5, 8):
            tensors.append(count_tensors())
        if what.step == 1:
            with pytest.raises(BusyError) as refused:
                in_thread(train_with_callbacks, bundle, tiny_bundle.cohort, training=training)
            errors.append(str(refused.value))
        if what.step == 8:
            stop.set()

    first = in_thread(train_with_callbacks, bundle, tiny_bundle.cohort, training=training, stop=stop, report=report)
    assert (first.is_stopped, first.folder, steps_saved(bundle)) == (True, bundle, 8)
    assert "stopped at step 8; the same command resumes from there" in caplog.text
    assert [(r.epoch, r.step) for r in reports] == [(1 + step // 3, step + 1) for step in range(8)]
    assert all(r.max_epochs == 4 and r.num_steps == 12 and r.loss > 0 and r.seconds_left > 0 for r in reports)
    assert tensors[0] == tensors[1] > 10
    assert errors[0].startswith("bundle: another process trains or publishes this bundle; wait until it has ended")
    shorter = {"max_epochs": 3, "learning_rate": 1e-5, "check_memory": False}
    train(bundle, tiny_bundle.cohort, device="cpu", overrides=shorter)
    assert "resuming from step 8 of 9" in caplog.text
    settings = configured(bundle)
    assert (settings["max_epochs"], settings["learning_rate"], settings["image_size"]) == (3, 1e-5, [16, 16])
    assert settings["device"].startswith("$")  # that of this run is not written
    assert steps_saved(bundle) == 9


@pytest.mark.goal(id="R26")
def test_sigterm_saves_the_last_step_and_ends_with_143(start_program, tiny_bundle, bundle, tiny_settings, tmp_path):
    settings = {**tiny_settings, "max_epochs": 100_000, "val_interval": 100_000, "checkpoint_minutes": 1000}
    keys = [word for key, value in settings.items() for word in (f"--{key}", value)]
    command = ["train", bundle, tiny_bundle.cohort, "--workers", 0, *keys]
    process = start_program(*command, output=tmp_path / "log.txt")
    assert wait_until((bundle / "models" / "checkpoint.pt").is_file)
    first = steps_saved(bundle)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert steps_saved(bundle) > first  # minutes before the next save
