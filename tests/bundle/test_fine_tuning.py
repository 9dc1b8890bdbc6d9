"""A training that begins with trained weights: those in its folder, or those of another bundle."""

import shutil

import pytest
import torch
from complaints import complaint
from ignite.engine import Events
from tiny_bundles import contents, rewrite, weights

from monai_diffae import init, train
from monai_diffae.apps.training.train import begin_from
from monai_diffae.bundle import checksum, load_bundle
from monai_diffae.engines.trainer import TrainingEvents
from monai_diffae.errors import ConfigError

RUN = {"max_epochs": 2, "batch_size": 10, "report_every": 1, "calibration_cases": 0}


@pytest.fixture
def trainer_of(make_workflow):
    """The trainer of two epochs with one step each, on another cohort than the bundle's, and its averaged weights."""

    def prepared(folder, **values):
        parser = make_workflow({**RUN, "output_dir": str(folder), **values}).parser
        return [parser.get_parsed_content(key) for key in ("train#trainer", "ema")]

    return prepared


def begin(trainer_of, folder, **values):
    """The first weights of a training, which takes no step."""
    trainer, average = trainer_of(folder, **values)
    trainer.fire_event(TrainingEvents.BEFORE_RUN)
    assert equal(trainer.network.state_dict(), average.network.state_dict())
    return trainer.network.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_begins_with_the_weights_in_its_folder(trainer_of, bundle, tmp_path, caplog):
    first, other = weights(bundle), shutil.copytree(bundle, tmp_path / "other")
    free = {"inferer#steps": 7, "val_fraction": 0.3, "seed": 5, "learning_rate": 1e-5, "precision": "fp32"}
    assert equal(begin(trainer_of, bundle, **free), first)
    assert "fine-tuning: a new training begins with the weights of model.safetensors" in caplog.text
    assert not equal(begin(trainer_of, other, overwrite=True), first)


@pytest.mark.slow
def test_a_training_that_is_killed_and_resumed_ends_as_the_whole_one(trainer_of, bundle, tmp_path):
    """It is killed after the first save, which replaces the weights that it began with."""
    whole = shutil.copytree(bundle, tmp_path / "whole")
    trainer_of(whole)[0].run()
    trainer = trainer_of(bundle)[0]
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    load_bundle(bundle, "cpu")
    trainer_of(bundle)[0].run()
    assert checksum(bundle) == checksum(whole)
    assert equal(begin(trainer_of, bundle, fine_tune=True), weights(bundle))  # although there is a checkpoint
    (whole / "models" / "model.safetensors").unlink()  # the first save would replace the checkpoint
    with pytest.raises(ConfigError, match=r"^model\.safetensors: is missing, so there are no weights to begin with"):
        begin(trainer_of, whole, fine_tune=True)


def test_start_from_makes_the_folder_as_init_does_and_trains_it(bundle, small_cohort, tmp_path):
    before = contents(bundle)
    init(tmp_path / "made", bundle=bundle)
    assert contents(begin_from(tmp_path / "new", bundle)) == contents(tmp_path / "made")
    quick = {"max_epochs": 1, "device": "cpu", "mlflow": False, "probe_interval": 0, "check_memory": False}
    train(tmp_path / "new", small_cohort, start_from=bundle, overrides={**RUN, **quick})
    assert contents(bundle) == before
    for again in (bundle, bundle / "models" / "model.safetensors"):
        assert begin_from(tmp_path / "new", again) == tmp_path / "new"  # it is resumed
    rewrite(bundle, lambda tensors: {name: value + 1 for name, value in tensors.items()})
    message = "new: exists, and was not made from bundle; choose a new folder, or omit start_from"
    assert complaint(train, tmp_path / "new", small_cohort, start_from=bundle) == message
    assert "none: there is no models/model.safetensor" in complaint(train, tmp_path / "a", start_from=tmp_path / "none")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [({"percentiles": [0, 100]}, "model.safetensors: was trained with other values of percentiles; use its values"),
     ({"diffusion#loss_weighting": "min_snr"}, "model.safetensors: was trained with other values of diffusion; "),
     ({"z_channels": 4}, "z_channels")],
)  # fmt: skip
def test_what_the_weights_were_trained_for_is_kept(trainer_of, bundle, values, message):
    before = contents(bundle)
    assert message in complaint(begin, trainer_of, bundle, **values)
    assert {name: text for name, text in contents(bundle).items() if not name.startswith("cache/")} == before


def test_a_new_folder_is_fine_tuned_from_the_weights_of_the_bundle(trainer_of, bundle, tmp_path, caplog):
    first = weights(bundle)
    assert equal(begin(trainer_of, tmp_path / "new", bundle_root=str(bundle), fine_tune=True), first)
    assert "replaces these weights" not in caplog.text
