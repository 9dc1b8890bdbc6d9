"""A training that begins from the weights of a trained bundle, on other data."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.bundle.warm_start import start_settings
from monai_diffae.errors import ConfigError, ScanError

RUN = {"max_epochs": 2, "batch_size": 4, "network_def#unet#dropout": 0.0, "report_every": 1}


def weights(folder):
    return torch.load(Path(folder) / "models" / "model.pt", weights_only=True)


def differing(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


class Killed(Exception):
    pass


def train(make_workflow, out, start_from=None, stop_at=None, **overrides):
    """Two epochs of two steps on a cohort that the tiny bundle was not trained on."""
    start = {} if start_from is None else {"start_from": str(start_from)}
    workflow = make_workflow({**RUN, "output_dir": str(out), **start, **overrides}, initialize=False)
    try:
        workflow.initialize()
        if stop_at is not None:

            def stop():
                raise Killed

            trainer = workflow.parser.get_parsed_content("train#trainer")
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), stop)
        workflow.run()
    except RuntimeError as error:  # MONAI's wrapping
        raise error.__cause__ or error from None


@pytest.fixture
def source(tiny_bundle, tmp_path):
    ignored = shutil.ignore_patterns("cache", "checkpoint.pt", ".lock")  # neither is needed
    return Path(shutil.copytree(tiny_bundle.directory, tmp_path / "source", ignore=ignored))


def test_it_begins_with_the_averaged_weights_and_only_reads_them(make_workflow, source, tmp_path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.rglob("*") if path.is_file()}
    train(make_workflow, tmp_path / "out", source, learning_rate=0.0)
    assert differing(source, tmp_path / "out") == []
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.rglob("*") if path.is_file()}
    assert after == before
    started_from = json.loads((tmp_path / "out" / "models" / "training.json").read_text())["_meta_"]
    assert started_from == {"started_from": checksum(source)}


def test_a_training_that_is_killed_and_resumed_ends_as_the_whole_one(make_workflow, source, tmp_path):
    train(make_workflow, tmp_path / "whole", source)
    assert differing(source, tmp_path / "whole")
    for stop_at in (1, 3):  # before the first save, and after it
        with pytest.raises(Killed):
            train(make_workflow, tmp_path / f"part{stop_at}", source, stop_at=stop_at)
    train(make_workflow, tmp_path / "part1", source)
    assert differing(tmp_path / "whole", tmp_path / "part1") == []
    shutil.rmtree(source)
    train(make_workflow, tmp_path / "part3")  # a checkpoint needs the weights no more
    assert differing(tmp_path / "whole", tmp_path / "part3") == []
    started_from = json.loads((tmp_path / "part3" / "models" / "training.json").read_text())["_meta_"]
    assert started_from["started_from"]


def test_a_checkpoint_that_began_from_other_weights_is_refused(make_workflow, source, tmp_path):
    train(make_workflow, tmp_path / "out", source, max_epochs=1)
    train(make_workflow, tmp_path / "cold", max_epochs=1)
    message = r"^checkpoint\.pt: belongs to a training that did not begin from these weights; omit start_from to resume"
    with pytest.raises(ConfigError, match=message):
        train(make_workflow, tmp_path / "cold", source)
    torch.save({name: value + 1 for name, value in weights(source).items()}, source / "models" / "model.pt")
    with pytest.raises(ConfigError, match=message):
        train(make_workflow, tmp_path / "out", source)
    train(make_workflow, tmp_path / "out", source, overwrite=True, learning_rate=0.0)
    assert differing(source, tmp_path / "out") == []


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ({"image_size": [32, 32], "base_channels": 32}, "base_channels, image_size"),
        ({"network_def#unet#dropout": 0.5}, "network_def"),
        ({"percentiles": [0, 100]}, "percentiles"),
        ({"diffusion#prediction": "eps"}, "diffusion"),
        ({"encoder_key": "t1"}, "encoder_key"),
    ],
)
def test_another_network_preprocessing_or_schedule_is_refused_before_a_scan_is_read(
    make_workflow, source, tmp_path, overrides, keys
):
    with pytest.raises(ConfigError, match=f"^start_from: source was trained with other values of {keys}; ") as caught:
        train(make_workflow, tmp_path / "out", source, dataset_dir="no such scans", **overrides)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_data_decoding_and_optimisation_may_differ(make_workflow, source, tmp_path):
    overrides = {"inferer#steps": 7, "val_fraction": 0.3, "seed": 5, "learning_rate": 1e-5, "precision": "fp32"}
    train(make_workflow, tmp_path / "out", source, max_epochs=1, **overrides)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda models: (models / "model.pt").unlink(), ConfigError, "^source: there is no models/model.pt; train the"),
        (lambda models: (models / "config.json").unlink(), ConfigError, "^source: there is no models/config.json; "),
        (
            lambda models: (models / "config.json").write_text("{"),
            ConfigError,
            "^config.json: cannot be read; copy the bundle source",
        ),
        (lambda models: (models / "model.pt").write_bytes(b"0"), ScanError, "^model.pt: cannot be read as weights"),
        (
            lambda models: torch.save({"a": torch.zeros(1)}, models / "model.pt"),
            ConfigError,
            "weights do not fit the configuration's network",
        ),
    ],
)
def test_a_bundle_that_cannot_be_used_is_one_line(make_workflow, source, tmp_path, spoil, error, message):
    spoil(source / "models")
    with pytest.raises(error, match=message) as caught:
        train(make_workflow, tmp_path / "out", source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "models" / "model.pt").exists()


def test_a_bundle_s_own_weights_are_replaced_only_if_asked(make_workflow, source):
    with pytest.raises(ConfigError, match="^start_from: source is also the folder of the results; choose another out"):
        train(make_workflow, source, source)
    before = checksum(source)
    train(make_workflow, source, source, overwrite=True)
    assert checksum(source) != before
    meta = json.loads((source / "models" / "training.json").read_text())["_meta_"]
    assert meta["started_from"] == before


def test_weights_without_a_checkpoint_are_fine_tuned(make_workflow, source, tmp_path, caplog):
    """As in a bundle that was shipped or pulled: the same command as a training."""
    (source / "models" / "model.safetensors").write_bytes(b"the same weights")
    (source / "models" / "training.json").unlink()  # it is not sent
    before, first = checksum(source), weights(source)
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        train(make_workflow, source, learning_rate=0.0, bundle_root=str(source))
    assert "fine-tuning: a new training begins with the weights of model.pt" in caplog.text
    assert [name for name, value in weights(source).items() if not torch.equal(value, first[name])] == []
    meta = json.loads((source / "models" / "training.json").read_text())["_meta_"]
    assert meta["started_from"] == before
    assert not (source / "models" / "model.safetensors").exists()  # they are no longer the model's


def test_a_fine_tuning_that_is_killed_and_resumed_ends_as_the_whole_one(make_workflow, source, tmp_path):
    copies = {stop_at: shutil.copytree(source, tmp_path / f"part{stop_at}") for stop_at in (1, 3)}
    train(make_workflow, source)
    for stop_at, out in copies.items():  # before the first save, and after it
        with pytest.raises(Killed):
            train(make_workflow, out, stop_at=stop_at)
        assert load_bundle(out, "cpu").network is not None
        train(make_workflow, out)
        assert differing(source, out) == []


def test_fine_tuning_keeps_what_the_weights_were_trained_for(make_workflow, source):
    before = checksum(source)
    for overrides, keys in (
        ({"percentiles": [0, 100]}, "percentiles"),
        ({"z_channels": 4}, "z_channels"),
    ):
        with pytest.raises(ConfigError, match=rf"^model\.pt: .* with other values of {keys}; use its values, choose"):
            train(make_workflow, source, **overrides)
    assert checksum(source) == before


def test_weights_to_begin_with_are_not_named_beside_others(make_workflow, source, tiny_bundle):
    with pytest.raises(
        ConfigError, match=r"model\.pt: there are trained weights, but no checkpoint\.pt to resume from"
    ):
        train(make_workflow, source, tiny_bundle.directory)


def test_overwrite_begins_with_random_weights(make_workflow, source):
    first = weights(source)
    train(make_workflow, source, overwrite=True, learning_rate=0.0)
    assert [name for name, value in weights(source).items() if not torch.equal(value, first[name])]


def test_start_settings_bind_the_network_and_leave_out_what_names_columns_and_patients(source):
    file = source / "models" / "training.json"
    settings = {**json.loads(file.read_text()), "columns#image": "file", "patient_pattern": "(.)", "learning_rate": 0.5}
    file.write_text(json.dumps(settings))
    read = start_settings(source)
    assert read["image_size"] == [16, 16]
    assert read["learning_rate"] == 0.5
    assert {"network_def", "preprocessing", "diffusion", "model_range", "percentiles"} <= read.keys()
    assert not {key for key in read if key.startswith(("columns", "patient_pattern", "device", "cohort", "dataset"))}
