from __future__ import annotations

import pytest
import torch

from monai_diffae.errors import ConfigError
from monai_diffae.networks import preset


def count(module: torch.nn.Module) -> int:
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
    assert network.config["z_channels"] == 32


def test_unknown_names_are_one_line():
    with pytest.raises(ConfigError, match="no preset 'paper_512': choose from tiny, paper_64"):
        preset("paper_512")
    with pytest.raises(ConfigError, match=r"preset 'tiny': .*'widht'"):
        preset("tiny", widht=3)
