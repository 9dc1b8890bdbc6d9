"""The bundle autoencoder_kl_3d: its training measures the scale of its latents, and its files are a bundle's."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser
from tiny_bundles import TINY_KL

from monai_diffae.apps.training.train import train
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.model_file import read_description
from monai_diffae.data.samples import make_virtual_cohort

TINY = {**TINY_KL, "max_epochs": 2, "num_pictures": 2, "report_every": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("kl")
    cohort = make_virtual_cohort(root / "cohort", num_patients=7, size=16, spatial_dims=3, val_fraction=0.2)
    directory = init_bundle(root / "bundle", "autoencoder_kl_3d")
    train(directory, cohort, overrides=TINY)
    return SimpleNamespace(directory=directory, cohort=cohort)


def test_the_scale_is_that_of_whole_training_images_under_the_averaged_weights(trained):
    state = torch.load(trained.directory / "models" / "model.pt", weights_only=True)
    parser = ConfigParser(read_description(trained.directory / "models" / "model.safetensors"))
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
    curves = pd.read_csv(trained.directory / "curves.csv")
    assert curves["validation_loss"].dropna().gt(0).all()
    assert curves["validation_kl"].dropna().gt(0).all()
    assert (trained.directory / "pictures" / "latest.png").is_file()
