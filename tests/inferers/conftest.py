"""A small network whose z_sem has an effect, and images for it."""

import pytest
import torch

from monai_diffae.networks import build_autoencoder


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = build_autoencoder(
        2, base_channels=4, channel_mult=(1, 2), num_res_blocks=1, z_channels=4, time_embed_channels=8
    )
    for parameter in network.parameters():
        if not parameter.any():  # the zero-initialised convolutions: without them z_sem changes nothing
            torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


@pytest.fixture
def images():
    return torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
