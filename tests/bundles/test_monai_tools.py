"""MONAI's own ways into a trained bundle: each gives the network of ``models/model.pt``, or one line."""

import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from complaints import complaint
from monai.bundle import ConfigWorkflow, ckpt_export, create_workflow, load, run
from scan_files import as_nobody
from tiny_bundles import contents, weights

from monai_diffae.bundle import init_bundle

KINDS = {"train": "train.json", "inference": "inference.json"}


def loaded(bundle, kind="train", **options):
    return load(bundle.name, bundle_dir=bundle.parent, workflow_type=kind, device="cpu", **options)


def opened(bundle, kind="train", **values):
    return create_workflow(config_file=str(bundle / "configs" / KINDS[kind]), workflow_type=kind, **values)


def assert_has(network, expected):
    torch.testing.assert_close(dict(network.state_dict()), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny_bundle", "train"),
        ("tiny_bundle", "inference"),
        pytest.param("tiny_bundle_3d", "inference", marks=pytest.mark.slow),
        pytest.param("first_stage", "train", marks=pytest.mark.slow),
    ],
)
def test_each_way_gives_every_tensor(request, tmp_path, monkeypatch, name, kind):
    made = request.getfixturevalue(name)
    bundle = made if isinstance(made, Path) else made.directory
    monkeypatch.chdir(tmp_path)
    expected = weights(bundle)
    assert_has(loaded(bundle, kind), expected)
    workflow = opened(bundle, kind)
    assert workflow.bundle_root == str(bundle)
    workflow.network_def.load_state_dict(expected)
    config_file = str(bundle / "configs" / KINDS[kind])
    plain = ConfigWorkflow(config_file, workflow_type=kind, logging_file=False, bundle_root=str(bundle))
    plain.initialize()
    plain.network_def.load_state_dict(expected)
    assert not list(tmp_path.iterdir())


def test_an_untrained_bundle_opens_for_training_and_says_why_not_otherwise(tmp_path):
    bundle = init_bundle(tmp_path / "new")
    assert opened(bundle).network_def is not None
    line = complaint(getattr, opened(bundle, "inference"), "network_def")
    assert line.startswith("new: there is no models/model.safetensors; train the bundle first")


def test_another_network_than_that_of_the_weights_is_one_line(bundle):
    override = {"unet#base_channels": 16}
    assert "weights do not fit the network of the configuration" in complaint(loaded, bundle, net_override=override)
    assert_has(loaded(bundle, net_override={"use_checkpoint": True}), weights(bundle))
    assert "other values of z_channels; use its values" in complaint(opened, bundle, z_channels=4)


@pytest.mark.parametrize("kind", KINDS)
def test_properties_are_checked_without_data_which_only_a_run_needs(tiny_bundle, first_stage, kind):
    for bundle in (tiny_bundle.directory, first_stage):
        assert complaint(opened(bundle, kind).run) == "dataset_dir: is required; give it a value"
        assert opened(bundle, kind).check_properties() == []


def test_a_run_works_from_anywhere(tiny_bundle, first_stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"dataset_dir": str(tiny_bundle.cohort), "output_dir": "run", "device": "cpu"}
    config = str(tiny_bundle.directory / "configs" / "inference.json")
    run("evaluating", config_file=config, **values, **{"writer#grid": "model", "dataloader#batch_size": 5})
    assert len(contents(tmp_path / "run" / "x_T")) == 12
    for name, id, key in (("evaluate", "run", "dataloader#batch_size"), ("inference", "evaluating", "postprocessing")):
        line = complaint(run, id, config_file=config.replace("inference", name), **values, **{key: 5})
        assert line.startswith(f"{key.partition('#')[0]}: has no effect on this run")
    config, cohort = first_stage / "configs" / "inference.json", str(first_stage.parent / "cohort")
    run("evaluating", config_file=str(config), dataset_dir=cohort, output_dir="alone", device="cpu")
    assert len(contents(tmp_path / "alone")) == 8


def test_a_value_that_the_run_of_a_command_does_not_use_is_a_warning(tiny_bundle, caplog):
    opened(tiny_bundle.directory, "inference", run_id="embed", logging_file=False, seed=3, mode="z_sem")
    assert "mode: has no effect on this run" in caplog.text
    assert "seed: has" not in caplog.text


def test_monai_finds_every_training_property(make_workflow):
    assert make_workflow().check_properties() == []


@pytest.mark.goal(id="R17")
def test_a_read_only_bundle_opens_and_a_run_that_writes_to_it_is_one_line(bundle, tiny_bundle, tmp_path):
    cohort = shutil.copytree(tiny_bundle.cohort.parent, tmp_path / "cohort") / tiny_bundle.cohort.name
    values = {"dataset_dir": str(cohort), "device": "cpu"}
    with as_nobody(bundle):
        for kind in KINDS:
            assert_has(loaded(bundle, kind), weights(bundle))
        inference = partial(run, "evaluating", config_file=str(bundle / "configs" / "inference.json"), **values)
        assert "cannot be written (Permission denied)" in complaint(inference, limit=1)
        training = partial(run, "training", config_file=str(bundle / "configs" / "train.json"), **values)
        assert "cannot be written (Permission denied)" in complaint(training, max_epochs=2)


@pytest.mark.parametrize(("name", "size"), [("tiny_bundle", (32, 16)), ("first_stage", (8, 8, 12))])
def test_ckpt_export_gives_what_the_network_gives(request, tmp_path, name, size):
    """TorchScript: our networks are scripted; MONAI's AutoencoderKL can only be traced."""
    made = request.getfixturevalue(name)
    bundle = getattr(made, "directory", made)
    images = torch.rand(2, 1, *size) * 2 - 1
    ckpt_export(
        net_id="network_def", filepath=str(tmp_path / "exported"), ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"), config_file=str(bundle / "configs" / "train.json"),
        use_trace=name == "first_stage", input_shape=images.shape,
    )  # fmt: skip
    network = opened(bundle).network_def.eval()
    network.load_state_dict(weights(bundle))
    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(torch.jit.load(tmp_path / "exported.ts")(images), expected, rtol=1e-4, atol=1e-5)


def test_an_error_of_monai_can_be_pickled_after_one_of_our_runs_has_begun(tiny_bundle):
    with pytest.raises(RuntimeError) as wrapped:
        opened(tiny_bundle.directory, "inference").run()
    assert type(wrapped.value) is RuntimeError
    assert str(pickle.loads(pickle.dumps(wrapped.value))) == str(wrapped.value)


@pytest.mark.slow
def test_monais_command_line_ends_with_our_line(tiny_bundle):
    config = str(tiny_bundle.directory / "configs" / "inference.json")
    command = [sys.executable, "-m", "monai.bundle", "run", "evaluating", "--config_file", config]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1] == "error: dataset_dir: is required; give it a value"
    assert "Traceback" not in ended.stderr
