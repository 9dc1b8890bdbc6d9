"""A small network whose z_sem has an effect, and images for it."""

import pytest
import torch
from tiny_bundles import small_autoencoder


@pytest.fixture
def network():
    return small_autoencoder()


@pytest.fixture
def images():
    return torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
