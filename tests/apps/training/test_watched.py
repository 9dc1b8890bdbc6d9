"""A training that another program watches and stops, in any thread."""

import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from monai_diffae.apps.settings import Training
from monai_diffae.apps.training.train import train
from monai_diffae.apps.training.watched import TrainingReport, train_watched
from monai_diffae.bundle import load_bundle
from monai_diffae.errors import ConfigError, DivergenceError, one_line


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    ignored = shutil.ignore_patterns("cache", "models")
    return shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=ignored)


@pytest.fixture
def training(tiny_settings):
    return Training(overrides={**tiny_settings, "max_epochs": 3, "batch_size": 2, "report_every": 1})


def in_thread(function, *args, **kwargs):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args, **kwargs).result()


def steps_saved(bundle):
    return torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"]


def test_it_reports_stops_with_a_checkpoint_and_resumes_to_the_same_weights(
    tiny_bundle, bundle, training, tmp_path, caplog
):
    whole = shutil.copytree(bundle, tmp_path / "whole")
    train(whole, tiny_bundle.cohort, training=training)
    stop, reports = threading.Event(), []

    def report(what):
        reports.append(what)
        if what.step == 4:
            stop.set()

    caplog.set_level(logging.INFO, logger="monai_diffae")
    first = in_thread(train_watched, bundle, tiny_bundle.cohort, training=training, stop=stop, report=report)
    assert first.is_stopped
    assert first.folder == bundle
    assert steps_saved(bundle) == 4
    assert "stopped at step 4; the same command resumes from there" in caplog.text
    assert [(r.epoch, r.step) for r in reports] == [(1, 1), (1, 2), (1, 3), (2, 4)]
    assert all(isinstance(r, TrainingReport) and r.max_epochs == 3 and r.num_steps == 9 for r in reports)
    assert all(r.loss > 0 and r.seconds_left > 0 for r in reports)

    again = in_thread(train_watched, bundle, tiny_bundle.cohort, training=training, stop=threading.Event())
    assert not again.is_stopped
    a, b = load_bundle(whole, "cpu").network.state_dict(), load_bundle(bundle, "cpu").network.state_dict()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_it_stops_at_the_end_of_an_epoch_and_frees_the_folder(tiny_bundle, bundle, training):
    stop = threading.Event()

    def report(what):
        if what.step == 3:  # the last step of an epoch: the checkpoint comes after its validation
            stop.set()

    assert train_watched(bundle, tiny_bundle.cohort, training=training, stop=stop, report=report).is_stopped
    assert steps_saved(bundle) == 3
    assert not train_watched(bundle, tiny_bundle.cohort, training=training).is_stopped


def test_a_stop_before_the_first_step_writes_nothing(tiny_bundle, bundle, training):
    stop = threading.Event()
    stop.set()
    assert train_watched(bundle, tiny_bundle.cohort, training=training, stop=stop).is_stopped
    assert not (bundle / "models").exists()


def test_a_failed_training_raises_its_error_and_frees_the_folder(tiny_bundle, bundle, training):
    broken = Training(overrides={**training.overrides, "learning_rate": 1e30})
    with pytest.raises(DivergenceError, match="not finite"):
        in_thread(train_watched, bundle, tiny_bundle.cohort, training=broken)
    train_watched(bundle, tiny_bundle.cohort, training=training)


def test_an_error_of_the_report_ends_the_training_and_keeps_the_checkpoint(tiny_bundle, bundle, training):
    def report(what):
        if what.step == 5:
            raise OSError("the server is gone")

    with pytest.raises(RuntimeError) as caught:  # MONAI's wrapping
        train_watched(bundle, tiny_bundle.cohort, training=training, report=report)
    assert "the server is gone" in one_line(caught.value)
    assert steps_saved(bundle) == 3


def test_two_trainings_of_a_folder_at_once_are_refused(tiny_bundle, bundle, training, monkeypatch):
    monkeypatch.setattr("monai_diffae.bundle.writing._PATIENCE_S", 0.1)
    errors = []

    def report(what):
        if what.step == 1:
            try:
                in_thread(train_watched, bundle, tiny_bundle.cohort, training=training)
            except ConfigError as error:
                errors.append(str(error))

    assert not train_watched(bundle, tiny_bundle.cohort, training=training, report=report).is_stopped
    assert len(errors) == 1
    assert errors[0].startswith("bundle: another process trains or publishes this bundle; wait until it has ended")
