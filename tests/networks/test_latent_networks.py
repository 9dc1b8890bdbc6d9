"""Networks of latents: the first stage of images, and the MLP of z_sem."""

import json

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from tiny_bundles import tiny_kl

from monai_diffae.errors import ConfigError
from monai_diffae.networks import FirstStage, LatentMLP


def make(spatial_dims=3, channels=(4, 8)):
    return FirstStage(tiny_kl(spatial_dims, channels, latent_channels=2)).eval()


def images(count=3, size=(8, 12, 16)):
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def first_stage():
    first_stage = make()
    first_stage.measure(images())
    return first_stage


def test_measured_latents_have_mean_0_a_channel_and_std_1():
    first_stage = make()
    first_stage.measure(images(5))
    latents = first_stage.encode(images(5))
    assert latents.shape == (5, *first_stage.latent_shape((1, 8, 12, 16))) == (5, 2, 4, 6, 8)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3, 4)), torch.zeros(2), atol=1e-5, rtol=0)
    assert float(latents.square().mean()) == pytest.approx(1, abs=1e-4)
    assert latents.std(dim=(0, 2, 3, 4))[0] != latents.std(dim=(0, 2, 3, 4))[1]  # one scale for all channels
    assert float(latents.abs().max()) > 2  # they are not clipped
    other = make()
    other.load_state_dict(first_stage.state_dict())  # the scale is saved with the weights
    assert torch.equal(other.encode(images(5)), latents)
    assert make(2).latent_shape((1, 16, 8, 5)) == (2, 8, 4, 5)  # slices of a 2D network stay


def test_the_images_alone_are_encoded_and_decoded_without_noise_and_decode_undoes_the_scale(first_stage):
    """One tensor, as MONAI's ``verify_net_in_out`` and exports need it; MONAI's own forward pass draws noise."""
    reconstruction = first_stage(images())
    assert torch.equal(reconstruction, make()(images()))
    torch.testing.assert_close(first_stage.autoencoder.reconstruct(images()), reconstruction, atol=1e-5, rtol=1e-4)
    decoded = first_stage.decode(first_stage.encode(images()))
    torch.testing.assert_close(decoded, reconstruction, atol=1e-5, rtol=1e-4)
    first_stage.image_range = (0.0, 0.1)
    assert float(decoded.max()) > 0.1
    assert torch.equal(first_stage(images()), reconstruction.clamp(0.0, 0.1))
    assert torch.equal(first_stage.decode(first_stage.encode(images())), decoded.clamp(0.0, 0.1))


def test_an_image_has_the_same_latents_and_back_whatever_the_others_are(first_stage):
    latents = first_stage.encode(images())
    assert torch.equal(latents[1:2], first_stage.encode(images()[1:2]))
    assert torch.equal(first_stage.decode(latents)[1:2], first_stage.decode(latents[1:2]))


def test_maisi_computes_the_same_in_one_piece_and_in_float32():
    settings = {"norm_num_groups": 4, "latent_channels": 2, "norm_float16": True, "num_splits": 2}
    maisi = AutoencoderKlMaisi(3, 1, 1, (1, 1), (4, 8), (False, False), **settings).eval()
    x = torch.rand(1, 1, 12, 8, 8)
    expected = AutoencoderKlMaisi(3, 1, 1, (1, 1), (4, 8), (False, False), **settings | {"norm_float16": False}).eval()
    expected.load_state_dict(maisi.state_dict())
    expected = expected.reconstruct(x).detach()
    first_stage = FirstStage(maisi)
    assert (first_stage.in_channels, first_stage.size_divisors) == (1, (2, 2, 2))
    torch.testing.assert_close(first_stage(x).detach(), expected, atol=1e-4, rtol=1e-4)
    assert first_stage(torch.rand(1, 1, 6, 8, 8)).shape == (1, 1, 6, 8, 8)  # of 7 voxels, splits would lose one


def test_patches_that_cannot_be_trained_with_are_refused():
    first_stage = make(channels=(4, 8, 8))
    first_stage.check_patch_size([12, 16, 16], [16, 16, 16])
    for patch, image, says in (
        ([16, 16], [16, 16, 16], "3 sizes"), ([16, 18, 16], [32, 32, 32], "multiples of 4"),
        ([8, 16, 16], [32, 32, 32], "above 8"), ([32, 32, 32], [32, 32, 16], "larger than image_size"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            first_stage.check_patch_size(patch, image)


def small(**overrides):
    torch.manual_seed(0)
    return LatentMLP(**{"z_channels": 6, "hidden_channels": 10, "num_layers": 4, **overrides}).eval()


def test_the_papers_network_has_its_size():
    with torch.device("meta"):
        network = LatentMLP()
    # the first layer, eight with a skip, the last with a skip, the time embedding
    layer = 2048 + (512 + 1) * 2048 + 2 * 2048
    expected = (512 * 2048 + layer) + 8 * (2560 * 2048 + layer) + (2561 * 512) + (65 * 512 + 513 * 512)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("skip_layers", [None, (), (0, 3)])
def test_config_builds_the_same_network_again(skip_layers):
    network = small(skip_layers=skip_layers, dropout=0.5)
    again = LatentMLP(**json.loads(json.dumps(network.config))).eval()
    again.load_state_dict(network.state_dict())
    z_t, t = torch.randn(2, 6), torch.tensor([3, 4])
    assert torch.equal(again(z_t, t), network(z_t, t))
    assert again.config == network.config
    assert network.config["skip_layers"] == ([1, 2, 3] if skip_layers is None else list(skip_layers))


def test_weights_start_kaiming_normal():
    network = small(z_channels=64, hidden_channels=400)
    for layer in network.layers:
        for linear in (layer.linear, layer.time_projection):
            assert linear.weight.std().item() == pytest.approx((2 / linear.in_features) ** 0.5, rel=0.05)


def test_dropout_acts_in_training_alone_and_bfloat16_autocast_keeps_the_dtype():
    network, z_t, t = small(dropout=0.5), torch.randn(4, 6), torch.tensor([3, 4, 5, 6])
    out = network(z_t, t)
    assert torch.equal(network(z_t, t), out)
    with torch.autocast("cpu", torch.bfloat16):
        in_bfloat16 = network(z_t, t)
    assert in_bfloat16.dtype == torch.float32
    torch.testing.assert_close(in_bfloat16, out, rtol=0.1, atol=0.1)
    assert not torch.equal(network.train()(z_t, t), out)
