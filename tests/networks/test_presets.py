import inspect

import pytest
import torch

from monai_diffae.errors import ConfigError
from monai_diffae.networks import DenoisingUNet, SemanticEncoder, build_autoencoder, preset


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "unet", "encoder"),
    [
        ("tiny", 1_428_131, 287_744),
        ("paper_64", 71_518_723, 19_320_512),  # with 3 channels 71.5 + 19.3 M in the official code
        ("paper_128", 103_871_619, 24_673_536),  # 103.9 + 24.7 M
        ("paper_256", 138_341_891, 30_150_400),  # 138.3 + 30.2 M
    ],
)
def test_parameters_are_those_of_the_official_configurations(name, unet, encoder):
    with torch.device("meta"):
        network = preset(name, in_channels=3)
    assert (count(network.unet), count(network.encoder)) == (unet, encoder)


@pytest.mark.parametrize("name", ["tiny", "paper_64", "paper_128", "paper_256"])
def test_presets_exist_in_3d(name):
    with torch.device("meta"):
        assert preset(name, spatial_dims=3).unet.stem.weight.ndim == 5


def test_size_divisors_are_the_encoders():
    with torch.device("meta"):
        assert [preset(name).size_divisors for name in ("tiny", "paper_64", "paper_128")] == [
            (8, 8),
            (16, 16),
            (32, 32),
        ]


def test_bundle_target_builds_a_preset():
    from monai.bundle import ConfigParser

    parser = ConfigParser({"network": {"_target_": "monai_diffae.networks.preset", "name": "tiny", "z_channels": 32}})
    network = parser.get_parsed_content("network").eval()
    assert network(torch.zeros(1, 1, 16, 16)).shape == (1, 1, 16, 16)
    assert network.unet.config["z_channels"] == network.encoder.config["z_channels"] == 32


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


def test_every_argument_of_either_network_can_be_given_flat():
    """A new argument of a network is one place: its signature."""
    for network in (DenoisingUNet, SemanticEncoder):
        for name, parameter in inspect.signature(network).parameters.items():
            if parameter.default is not inspect.Parameter.empty and name != "in_channels":
                with torch.device("meta"):
                    built = build_autoencoder(2, **{"base_channels": 4, "channel_mult": (1,), name: parameter.default})
                assert name in {**built.unet.config, **built.encoder.config}


def test_arguments_that_no_network_has_are_one_line():
    with pytest.raises(ConfigError, match="^there is no argument 'z_chanels'; did you mean 'z_channels'"):
        build_autoencoder(2, z_chanels=3)
    with pytest.raises(ConfigError, match="^there is no argument 'encoder_dropout'"):
        build_autoencoder(2, encoder_dropout=0.1)
    with pytest.raises(ConfigError, match="^encoder_base_channels has no effect on an encoder of your own; omit it"):
        build_autoencoder(2, encoder=torch.nn.Identity(), encoder_base_channels=8)


def test_unknown_names_are_one_line():
    with pytest.raises(ConfigError, match="no preset 'paper_512': choose from tiny, paper_64"):
        preset("paper_512")
    with pytest.raises(ConfigError, match=r"preset 'tiny': .*'widht'"):
        preset("tiny", widht=3)
