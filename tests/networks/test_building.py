"""Networks from presets, flat arguments and their own configs."""

import json

import pytest
import torch
from torch import nn

from monai_diffae.errors import ConfigError
from monai_diffae.networks import (
    DenoisingUNet,
    DiffusionAutoencoder,
    SemanticEncoder,
    build_autoencoder,
    preset,
)
from monai_diffae.networks.strides import anisotropic_strides, size_divisors


def test_config_builds_the_same_network_again():
    network = build_autoencoder(
        2, base_channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=12, encoder_base_channels=4,
        encoder_channel_mult=(1, 2, 2, 2), encoder_attention_levels=(), encoder_num_res_blocks=2, z_grid=(1, 2),
    ).eval()  # fmt: skip
    nn.init.normal_(network.unet.head[-1].weight)
    unet, encoder = (json.loads(json.dumps(part.config)) for part in (network.unet, network.encoder))
    again = DiffusionAutoencoder(SemanticEncoder(**encoder), DenoisingUNet(**unet)).eval()
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 8, 16)
    torch.testing.assert_close(again(x), network(x))
    assert (again.unet.config, again.encoder.config) == (network.unet.config, network.encoder.config)


# -- presets and flat arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unet", "encoder", "divisor"),
    [
        ("tiny", 1_428_131, 287_744, 8),
        ("paper_64", 71_518_723, 19_320_512, 16),  # with 3 channels 71.5 + 19.3 M in the official code
        ("paper_128", 103_871_619, 24_673_536, 32),  # 103.9 + 24.7 M
        ("paper_256", 138_341_891, 30_150_400, 64),  # 138.3 + 30.2 M
    ],
)
def test_parameters_are_those_of_the_official_configurations(name, unet, encoder, divisor):
    with torch.device("meta"):
        network = preset(name, in_channels=3)
        assert preset(name, spatial_dims=3).unet.stem.weight.ndim == 5
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (network.unet, network.encoder)]
    assert sizes == [unet, encoder]
    assert network.size_divisors == (divisor, divisor)


def test_flat_arguments_go_where_they_are_known():
    with torch.device("meta"):
        network = build_autoencoder(
            2, 3, base_channels=8, channel_mult=(1, 2), num_heads=2, dropout=0.3, encoder_in_channels=1,
            encoder_num_heads=4, encoder_attention_levels=(0,), encoder_base_channels=None,
        )  # fmt: skip
    unet, encoder = network.unet.config, network.encoder.config
    assert (unet["in_channels"], encoder["in_channels"]) == (3, 1)
    assert unet["base_channels"] == encoder["base_channels"] == 8  # None is the default
    assert (unet["channel_mult"], encoder["channel_mult"]) == ([1, 2], [1, 2, 2])
    assert (unet["num_heads"], encoder["num_heads"]) == (2, 4)
    assert (unet["attention_levels"], encoder["attention_levels"]) == ([], [0])
    assert unet["dropout"] == 0.3
    assert "dropout" not in encoder


def test_arguments_that_no_network_has_are_one_line():
    with pytest.raises(ConfigError, match="^there is no argument 'z_chanels'; did you mean 'z_channels'"):
        build_autoencoder(2, z_chanels=3)
    with pytest.raises(ConfigError, match="^encoder_base_channels has no effect on an encoder of your own; omit it"):
        build_autoencoder(2, encoder=torch.nn.Identity(), encoder_base_channels=8)
    with pytest.raises(ConfigError, match="no preset 'paper_512': choose from tiny, paper_64"):
        preset("paper_512")
    with pytest.raises(ConfigError, match=r"preset 'tiny': .*'widht'"):
        preset("tiny", widht=3)


# -- strides per axis -----------------------------------------------------------------------------------------------


def test_thick_slices_keep_their_axis_until_the_others_are_as_thick():
    assert anisotropic_strides([64, 64, 64], [1, 1, 1], 4) == [[2, 2, 2]] * 4
    strides = anisotropic_strides([320, 280, 24], [0.6875, 0.6875, 6.5], 5)
    assert [s[2] for s in strides] == [1, 1, 1, 2, 2]
    assert [s[:2] for s in strides] == [[2, 2], [2, 2], [2, 2], [2, 1], [2, 1]]  # 280 = 8 * 35
    assert anisotropic_strides([48, 48, 11], [1, 1, 1], 2) == [[2, 2, 1]] * 2  # sizes that cannot be halved stay


@pytest.mark.parametrize("sizes", [[32, 48, 32], [17, 40, 24]])
def test_the_networks_take_the_size_that_strides_were_made_for(sizes):
    strides = anisotropic_strides(sizes, [1, 1, 4], 3)
    network = build_autoencoder(
        3, base_channels=2, channel_mult=(1, 2, 2), num_res_blocks=1, z_channels=8, strides=strides
    )
    assert network.size_divisors == size_divisors(3, strides)
    x = torch.randn(1, 1, *sizes)
    with torch.no_grad():
        assert network(x, torch.tensor([5]), x).shape == x.shape
    again = build_autoencoder(**network.unet.config)
    again.load_state_dict(network.state_dict())
    assert again.encoder.config == network.encoder.config
