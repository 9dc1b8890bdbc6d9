"""A training that begins from the weights of a trained bundle: those of another folder, or those in its own."""

import json
import shutil

import pytest
import torch
from ignite.engine import Events
from tiny_bundles import contents, weights

from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.engines.trainer import TrainingEvents
from monai_diffae.errors import ConfigError, DiffAEError

RUN = {"max_epochs": 2, "batch_size": 4, "network_def#unet#dropout": 0.0, "report_every": 1}


class Killed(Exception):
    pass


@pytest.fixture
def prepare(make_workflow):
    """Prepares a training of two epochs with two steps each, on a cohort that the bundle was not trained on."""

    def prepared(out, **values):
        workflow = make_workflow({**RUN, "output_dir": str(out), **values}, initialize=False)
        try:
            workflow.initialize()
            workflow.parser.get_parsed_content("training#1")  # checks start_from
        except RuntimeError as error:  # MONAI's wrapping
            raise error.__cause__ or error from None
        return workflow.parser

    return prepared


@pytest.fixture
def begin(prepare):
    """The first weights of a training, which takes no step: those that it trains, and their average."""

    def begun(out, **values):
        parser = prepare(out, **values)
        trainer, average = parser.get_parsed_content("train#trainer"), parser.get_parsed_content("ema")
        trainer.fire_event(TrainingEvents.BEFORE_RUN)
        first = trainer.network.state_dict()
        assert equal(first, average.network.state_dict())
        return first

    return begun


def train(prepare, out, stop_at=None, **values):
    trainer = prepare(out, **values).get_parsed_content("train#trainer")

    def stop():
        raise Killed

    if stop_at is None:
        trainer.run()
        return
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), stop)
    with pytest.raises(Killed):
        trainer.run()


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def origin(folder):
    return json.loads((folder / "models" / "training.json").read_text())["_meta_"]["started_from"]


def test_it_begins_with_the_weights_that_it_is_given(begin, bundle, tmp_path):
    before = contents(bundle)
    assert equal(begin(tmp_path / "other", start_from=str(bundle)), weights(bundle))
    shutil.copytree(bundle, tmp_path / "own")
    assert equal(begin(tmp_path / "own"), weights(bundle))  # there is no checkpoint: this is fine-tuning
    shutil.copytree(bundle, tmp_path / "new")
    assert not equal(begin(tmp_path / "new", overwrite=True), weights(bundle))
    differing = {"inferer#steps": 7, "val_fraction": 0.3, "seed": 5, "learning_rate": 1e-5, "precision": "fp32"}
    assert equal(begin(tmp_path / "differing", start_from=str(bundle), **differing), weights(bundle))
    assert contents(bundle) == before


def test_a_training_that_is_killed_and_resumed_ends_as_the_whole_one(prepare, bundle, tmp_path):
    """In the bundle's own folder; it is killed after the first save, which replaces the weights that it began with."""
    first = checksum(bundle)
    whole = shutil.copytree(bundle, tmp_path / "whole")
    (whole / "models" / "model.safetensors").write_bytes(b"the same weights")
    train(prepare, whole)
    train(prepare, bundle, stop_at=3)
    load_bundle(bundle, "cpu")
    train(prepare, bundle)
    assert checksum(whole) != first
    assert equal(weights(bundle), weights(whole))
    assert origin(bundle) == origin(whole) == first
    assert not (whole / "models" / "model.safetensors").exists()  # they are no longer the model's


@pytest.mark.slow
def test_so_does_a_training_in_another_folder(prepare, bundle, tmp_path):
    first, start = checksum(bundle), {"start_from": str(bundle)}
    train(prepare, tmp_path / "whole", **start)
    for stop_at in (1, 3):  # before the first save, and after it
        train(prepare, tmp_path / f"part{stop_at}", stop_at, **start)
    train(prepare, tmp_path / "part1", **start)
    shutil.rmtree(bundle)
    train(prepare, tmp_path / "part3")  # a checkpoint needs the weights no more
    for out in (tmp_path / "part1", tmp_path / "part3"):
        assert equal(weights(out), weights(tmp_path / "whole"))
        assert origin(out) == first
    with pytest.raises(ConfigError, match=r"^checkpoint\.pt: belongs to a training that did not begin from these weig"):
        train(prepare, tmp_path / "part3", start_from=str(shutil.copytree(tmp_path / "part1", tmp_path / "other")))


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"image_size": [32, 32], "base_channels": 32}, "base_channels, image_size"),
        ({"percentiles": [0, 100]}, "percentiles"),
        ({"diffusion#loss_weighting": "min_snr"}, "diffusion"),
    ],
)
def test_what_the_weights_were_trained_for_is_kept(prepare, begin, bundle, tmp_path, values, keys):
    before = contents(bundle)
    with pytest.raises(ConfigError, match=f"^start_from: bundle was trained with other values of {keys}; "):
        prepare(tmp_path / "out", start_from=str(bundle), dataset_dir="no such scans", **values)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"^model\.pt: .* with other values of .*; use its values, choose"):
        begin(bundle, **values)
    assert contents(bundle) == before


def test_weights_that_cannot_be_used_are_one_line(begin, bundle, tmp_path):
    def refused(out, start_from):
        with pytest.raises(DiffAEError) as caught:
            begin(out, start_from=str(start_from))
        assert not (tmp_path / "out" / "models" / "model.pt").exists()
        return str(caught.value)

    assert refused(bundle, bundle).startswith(
        "start_from: bundle is also the folder of the results; choose another out"
    )
    other = shutil.copytree(bundle, tmp_path / "other")
    assert refused(other, bundle).startswith("model.pt: there are trained weights, but no checkpoint.pt to resume from")
    model = bundle / "models" / "model.pt"
    torch.save({"a": torch.zeros(1)}, model)
    assert "weights do not fit the configuration's network" in refused(tmp_path / "out", bundle)
