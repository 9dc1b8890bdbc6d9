from __future__ import annotations

import copy

import pytest
import torch

from monai_diffae.errors import ConfigError
from monai_diffae.networks import DenoisingUNet, DiffusionAutoencoder, MultiscaleEncoder, SemanticEncoder

SMALL = {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 2, "attention_levels": (1,), "z_channels": 12}


def encoder(spatial_dims: int = 2, **overrides: object) -> MultiscaleEncoder:
    torch.manual_seed(0)
    return MultiscaleEncoder(spatial_dims, 1, **{**SMALL, **overrides}).eval()


def images(spatial_dims: int = 2) -> torch.Tensor:
    return torch.randn(2, 1, *(8, 12, 4)[:spatial_dims], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_z_is_that_of_the_plain_encoder_and_the_means_of_each_stage(spatial_dims):
    network = encoder(spatial_dims, z_grid=2)
    plain = SemanticEncoder(spatial_dims, 1, **SMALL, z_grid=2).eval()
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if "readers" not in name})
    x = images(spatial_dims)
    expected, h = plain(x), plain.stem(x)
    for stage, reader in zip(plain.stages, network.readers, strict=True):
        h = stage(h)
        norm, linear = reader[0], reader[-1]
        features = torch.nn.functional.silu(norm(h))
        expected = expected + features.flatten(2).mean(dim=2) @ linear.weight.T
    torch.testing.assert_close(network(x), expected)


def test_texture_that_the_smallest_features_do_not_hold_changes_z():
    network = encoder()
    for parameter in network.head.parameters():
        torch.nn.init.zeros_(parameter)  # so that only the means are read
    x = images()
    assert not torch.allclose(network(x), network(torch.nn.functional.avg_pool2d(x, 3, 1, 1)), atol=1e-3)


def test_recomputed_activations_give_the_same_gradients():
    network = encoder().train()
    other = copy.deepcopy(network)
    other.use_checkpoint = True
    for each in (network, other):
        each(images()).square().sum().backward()
    for first, second in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_scripted_and_exported_it_gives_the_same(spatial_dims):
    network, x = encoder(spatial_dims), images(spatial_dims)
    assert torch.equal(torch.jit.script(network)(x), network(x))
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


def test_its_config_builds_the_same_network_and_it_fits_an_autoencoder():
    network = encoder()
    other = MultiscaleEncoder(**network.config)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.eval()(images()), network(images()))
    unet = DenoisingUNet(2, z_channels=12, base_channels=8, channel_mult=(1, 2), time_embed_channels=8)
    autoencoder = DiffusionAutoencoder(network, unet, use_checkpoint=True)
    assert network.use_checkpoint
    assert torch.equal(autoencoder.eval().encode(images()), network(images()))


def test_a_wrong_size_is_one_line():
    with pytest.raises(ConfigError, match="the image to encode"):
        encoder()(torch.zeros(1, 1, 7, 8))
