"""The bundle autoencoder_kl_3d: its training measures the scale of its latents, and its files are a bundle's."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_diffae.apps.training.train import train
from monai_diffae.bundle.config import check_config, model_config
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.errors import ConfigError

BUNDLE = Path(__file__).parents[2] / "bundles" / "autoencoder_kl_3d"
TINY = {
    "image_size": [16, 16, 24], "spacing_mm": [14.0, 14.0, 14.0], "patch_size": [16, 16, 16], "max_epochs": 2,
    "network_def#autoencoder#channels": [4, 8], "network_def#autoencoder#attention_levels": [False, False],
    "network_def#autoencoder#norm_num_groups": 4, "val_interval": 1, "num_pictures": 2, "mlflow": False,
    "device": "cpu", "report_every": 1, "test_fraction": 0.2, "val_fraction": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("kl")
    cohort = make_virtual_cohort(root / "cohort", num_patients=7, size=16, spatial_dims=3, val_fraction=0.2)
    directory = init_bundle(root / "bundle", "autoencoder_kl_3d")
    train(directory, cohort, overrides=TINY)
    return SimpleNamespace(directory=directory, cohort=cohort)


def read(path):
    return json.loads(path.read_text())


def run_inference(trained, out):
    root = trained.directory
    files = [str(root / "configs" / "inference.json"), str(root / "models" / "config.json")]
    workflow = ConfigWorkflow(files, str(root / "configs" / "metadata.json"), logging_file=False, workflow_type="infer")
    values = {"bundle_root": str(root), "dataset_dir": str(trained.cohort), "output_dir": str(out), "device": "cpu"}
    workflow.parser.update(values)
    workflow.initialize()
    return workflow


def test_the_scale_is_that_of_whole_training_images_under_the_averaged_weights(trained):
    state = torch.load(trained.directory / "models" / "model.pt", weights_only=True)
    parser = ConfigParser(read(trained.directory / "models" / "config.json"))
    first_stage = parser.get_parsed_content("network_def").eval()
    first_stage.load_state_dict(state)
    table = pd.read_csv(trained.cohort)
    preprocessing = parser.get_parsed_content("preprocessing")
    files = [str(trained.cohort.parent / image) for image in table[table["split"] == "train"]["image"]]
    latents = first_stage.encode(torch.stack([preprocessing({"image": file})["image"].as_tensor() for file in files]))
    assert latents.shape[1:] == first_stage.latent_shape((1, 16, 16, 24)) == (4, 8, 8, 12)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3, 4)), torch.zeros(4), atol=0.02, rtol=0)
    assert float(latents.square().mean()) == pytest.approx(1, abs=0.02)
    checkpoint = torch.load(trained.directory / "models" / "checkpoint.pt", weights_only=True)
    assert torch.equal(checkpoint["network"]["latent_std"], state["latent_std"])


def test_training_leaves_curves_and_pictures(trained):
    curves = pd.read_csv(trained.directory / "curves.csv")
    assert curves["validation_loss"].dropna().gt(0).all()
    assert curves["validation_kl"].dropna().gt(0).all()
    assert (trained.directory / "curves.png").is_file()
    assert (trained.directory / "pictures" / "latest.png").is_file()


def test_a_resumed_training_ends_as_an_uninterrupted_one(trained, tmp_path):
    for epochs in (1, 2):
        train(
            trained.directory,
            trained.cohort,
            tmp_path,
            overrides={**TINY, "max_epochs": epochs, "lr_schedule": "constant"},
        )
    train(trained.directory, trained.cohort, tmp_path / "whole", overrides={**TINY, "lr_schedule": "constant"})
    one, other = (
        torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (tmp_path, tmp_path / "whole")
    )
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)


def test_inference_writes_every_reconstruction(trained, tmp_path):
    workflow = run_inference(trained, tmp_path)
    assert workflow.check_properties() == []
    workflow.run()
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.nii.gz" for name in pd.read_csv(trained.cohort)["id"]}


def test_patches_that_the_levels_cannot_take_are_refused_before_a_scan_is_read(tmp_path):
    with pytest.raises(ConfigError, match="patch_size is .2, 16, 16.; each must be above 4"):
        train(BUNDLE, tmp_path / "none", tmp_path / "out", overrides={**TINY, "patch_size": [2, 16, 16]})


def test_patches_are_no_larger_than_the_image():
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    parser["image_size"] = [16, 48, 24]
    assert parser.get_parsed_content("patch_size") == [16, 32, 24]


def test_network_gives_what_the_metadata_says():
    form = read(BUNDLE / "configs" / "metadata.json")["network_data_format"]
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    network = parser.get_parsed_content("network_def").eval()
    assert form["inputs"]["image"]["spatial_shape"] == [f"{d}*n" for d in network.size_divisors]
    with torch.no_grad():
        pred = network(torch.zeros(1, form["inputs"]["image"]["num_channels"], 8, 12, 16))
    assert pred.shape == (1, form["outputs"]["pred"]["num_channels"], 8, 12, 16)


@pytest.mark.parametrize("files", [["train"], ["train", "multi_gpu_train"], ["inference"]], ids=" ".join)
def test_configs_have_no_key_that_nothing_uses(files):
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in files])
    check_config({key: value for key, value in parser.get().items() if key != "_meta_"})


def test_training_and_inference_describe_the_same_model_and_data():
    train_config, infer = read(BUNDLE / "configs" / "train.json"), read(BUNDLE / "configs" / "inference.json")
    differ = {key for key in train_config.keys() & infer.keys() if train_config[key] != infer[key]}
    assert differ <= {"imports", "output_dir", "initialize", "run", "batch_size"}
    assert model_config(train_config).keys() <= infer.keys()


def test_volumes_are_brought_to_the_models_grid_as_by_diffae_3d():
    ours, other = (read(BUNDLE.parent / name / "configs" / "train.json") for name in (BUNDLE.name, "diffae_3d"))
    assert ours["preprocessing"] == other["preprocessing"]
