"""Bundles with encoders of other packages, as docs/encoders.md says: trained, resumed, loaded."""

import json
import re
from pathlib import Path

import pytest
import torch

from monai_diffae.apps.training.train import train
from monai_diffae.bundle import init_bundle, load_bundle, trusting
from monai_diffae.errors import ConfigError, UnsafeInputError, find_diffae_error

PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"
MONAI_FROZEN = {
    "network_def#encoder#network": {
        "_target_": "monai.networks.nets.resnet18", "spatial_dims": "@spatial_dims", "n_input_channels": 3,
        "feed_forward": False,
    },
    "network_def#encoder#head": None,
}  # fmt: skip


def overlay(name, folder):
    """A JSON block of the page, by the file name that the page gives it."""
    blocks = dict(re.findall(r"ave this as `(\w+)\.json`:\n\n```json\n(.*?)```", PAGE.read_text(), flags=re.S))
    path = folder / f"{name}.json"
    path.write_text(blocks[name])
    return path


def test_a_network_of_monai_is_trained(tiny_settings, small_cohort, tmp_path):
    settings = {**tiny_settings, "image_size": [32, 32]}
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    train(bundle, small_cohort, overlays=[overlay("resnet", tmp_path)], overrides=settings)
    trained = load_bundle(bundle, "cpu")
    assert type(trained.network.encoder).__name__ == "ResNet"
    z_sem = trained.inferer.encode(torch.zeros(1, 1, 32, 32), trained.network)
    assert z_sem.shape == (1, 8)
    assert z_sem.isfinite().all()


@pytest.mark.parametrize("package", ["monai", "torchvision"])
def test_a_frozen_network_is_trained_on(package, tiny_settings, small_cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # the other package has the same overlay
    settings = {**tiny_settings, "network_def#encoder#size": [32, 32]}
    torch.manual_seed(1)
    if package == "monai":
        from monai.networks.nets import resnet18

        settings |= MONAI_FROZEN
        pretrained = resnet18(spatial_dims=2, n_input_channels=3, feed_forward=False)
    else:
        models = pytest.importorskip("torchvision.models", reason="torchvision is in the extra `lpips`")
        pretrained = models.resnet18()
    file = tmp_path / "resnet18.pt"
    torch.save(pretrained.state_dict(), file)
    settings["encoder_weights"] = str(file)
    overlays = [overlay("frozen", tmp_path)]
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    with pytest.raises(UnsafeInputError, match="^bundle: train.json, frozen.json is not trusted to use "):
        train(bundle, small_cohort, overlays=overlays, overrides=settings)
    with trusting():
        train(bundle, small_cohort, overlays=overlays, overrides=settings)
        checkpoint = torch.load(bundle / "models" / "checkpoint.pt", weights_only=True)
        train(bundle, small_cohort, overlays=overlays, overrides={**settings, "max_epochs": 2})  # resumed

    config = json.loads((bundle / "models" / "config.json").read_text())
    assert "encoder_weights" not in config
    file.unlink()  # the trained bundle does not need it
    trained = load_bundle(bundle, "cpu")
    assert trained.network.encoder_frozen
    adapter, weights = trained.network.encoder, pretrained.state_dict()
    kept = adapter.network.state_dict()
    assert {name for name in weights if not name.startswith("fc.")} == set(kept)
    assert all(torch.equal(value, weights[name]) for name, value in kept.items())
    # in the optimiser: the UNet and the projection
    moments = checkpoint["optimizer"]["state"].values()
    learnt = [*trained.network.unet.parameters(), *adapter.projection.parameters()]
    assert sorted(m["exp_avg"].shape for m in moments) == sorted(p.shape for p in learnt)
    start = checkpoint["network"]["encoder.projection.weight"]
    assert not torch.equal(adapter.projection.weight, start)
    z_sem = trained.inferer.encode(torch.rand(2, 1, 16, 16) * 2 - 1, trained.network)
    assert z_sem.shape == (2, 8)


def test_an_encoder_with_another_z_sem_is_refused_before_any_scan_is_read(make_workflow, tmp_path):
    encoder = json.loads(overlay("resnet", tmp_path).read_text())["network_def#encoder"]
    settings = {"network_def#encoder": {**encoder, "num_classes": 5}, "image_size": [32, 32], "dataset_dir": "/gone"}
    settings["check_memory"] = True  # which runs the network without data
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        make_workflow(settings)
    error = find_diffae_error(caught.value)
    assert isinstance(error, ConfigError)
    assert "the encoder ResNet gives (4, 5): z_channels=8 needs (B, 8)" in str(error)


def test_size_rules_of_the_encoder_count_for_the_image_size(make_workflow):
    sizes = {"network_def#encoder": {
        "_target_": "monai_diffae.networks.EncoderAdapter", "network": {"_target_": "torch.nn.Identity"},
        "channels": 1, "size_divisors": [14, 14],
    }}  # fmt: skip
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        make_workflow({**sizes, "dataset_dir": "/gone"})
    assert "image_size is [16, 16]; the network needs multiples of 14" in str(find_diffae_error(caught.value))


def test_a_seed_gives_the_weights_that_it_gave_before_the_networks_were_components():
    """The UNet is built first, in JSON as in ``build_autoencoder``; otherwise trainings would not reproduce."""
    from monai.bundle import ConfigParser

    from monai_diffae.networks import anisotropic_strides, build_autoencoder

    for bundle, dims in (("diffae_2d", 2), ("diffae_3d", 3)):
        parser = ConfigParser()
        parser.read_config(str(PAGE.parents[1] / "bundles" / bundle / "configs" / "train.json"))
        torch.manual_seed(0)
        weights = parser.get_parsed_content("network_def").state_dict()
        torch.manual_seed(0)
        flat = build_autoencoder(
            dims, base_channels=16, channel_mult=(1, 2, 4, 8), num_res_blocks=1, z_channels=128,
            time_embed_channels=128, z_grid=4 if dims == 2 else 2,
            strides=None if dims == 2 else anisotropic_strides([32, 40, 32], [1.5, 1.5, 1.5], 4),
        ).state_dict()  # fmt: skip
        assert list(weights) == list(flat)
        assert all(torch.equal(weights[name], flat[name]) for name in flat)


@pytest.mark.parametrize("name", ["paper_64", "paper_128", "paper_256"])
def test_the_papers_overlays_are_the_presets(name):
    from monai.bundle import ConfigParser

    from monai_diffae.networks import preset

    root = PAGE.parents[1]
    parser = ConfigParser()
    parser.read_config([str(root / "bundles/diffae_2d/configs/train.json"), str(root / "configs" / f"{name}.json")])
    with torch.device("meta"):
        network, expected = parser.get_parsed_content("network_def"), preset(name)
    for part in ("unet", "encoder"):
        assert getattr(network, part).config == getattr(expected, part).config
