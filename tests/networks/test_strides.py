"""Strides an axis: thick slices keep their axis until the others are as thick."""

import pytest
import torch

from monai_diffae.errors import ConfigError
from monai_diffae.networks import build_autoencoder
from monai_diffae.networks.strides import anisotropic_strides, level_strides, size_divisors


def test_equal_spacings_are_halved_alike():
    assert anisotropic_strides([64, 64, 64], [1, 1, 1], 4) == [[2, 2, 2]] * 4


def test_thick_slices_wait_for_the_others():
    strides = anisotropic_strides([320, 280, 24], [0.6875, 0.6875, 6.5], 5)
    assert [s[2] for s in strides] == [1, 1, 1, 2, 2]
    assert [s[:2] for s in strides] == [[2, 2], [2, 2], [2, 2], [2, 1], [2, 1]]  # 280 = 8 * 35


def test_sizes_that_cannot_be_halved_stay():
    assert anisotropic_strides([48, 48, 11], [1, 1, 1], 2) == [[2, 2, 1]] * 2


@pytest.mark.parametrize("sizes", [[32, 48, 32], [160, 160, 22], [17, 40, 24]])
def test_the_networks_take_the_size_that_strides_were_made_for(sizes):
    strides = anisotropic_strides(sizes, [1, 1, 4], 3)
    network = build_autoencoder(
        3, base_channels=4, channel_mult=(1, 2, 2), num_res_blocks=1, z_channels=8, time_embed_channels=8,
        strides=strides,
    )  # fmt: skip
    assert network.size_divisors == size_divisors(3, strides)
    x = torch.randn(1, 1, *sizes)
    with torch.no_grad():
        assert network(x, torch.tensor([5]), x).shape == x.shape
    again = build_autoencoder(**network.unet.config)
    again.load_state_dict(network.state_dict())
    assert again.encoder.config == network.encoder.config


def test_strides_of_two_are_the_default():
    torch.manual_seed(0)
    plain = build_autoencoder(2, base_channels=4, channel_mult=(1, 2), z_channels=8, time_embed_channels=8)
    torch.manual_seed(0)
    said = build_autoencoder(
        2, base_channels=4, channel_mult=(1, 2), z_channels=8, time_embed_channels=8, strides=[2, (2, 2)]
    )
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(plain.encode(x), said.encode(x))


def test_an_anisotropic_network_can_be_scripted():
    network = build_autoencoder(
        3, base_channels=4, channel_mult=(1, 2), z_channels=8, time_embed_channels=8, strides=[(2, 2, 1), 2]
    ).eval()
    x, z, t = torch.randn(1, 1, 8, 8, 6), torch.randn(1, 8), torch.tensor([3])
    scripted = torch.jit.script(network.unet)
    torch.testing.assert_close(scripted(x, t, z), network.unet(x, t, z))


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        ([2], "there are 1, but 3 levels need 2"),
        ([2, (2, 2)], "must be 3 numbers"),
        ([3, 2], "must be 3 numbers, each 1 or 2"),
    ],
)
def test_strides_that_are_none(strides, message):
    with pytest.raises(ConfigError, match=message):
        level_strides(3, 3, strides)


def test_sizes_and_spacings_must_match():
    with pytest.raises(ConfigError, match="one per axis"):
        anisotropic_strides([8, 8], [1, 1, 1], 1)
