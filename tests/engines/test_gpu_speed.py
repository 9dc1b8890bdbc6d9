"""Tests of :mod:`monai_diffae.engines.gpu_speed`."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from monai_diffae.engines.gpu_speed import GPUS, Gpu, predicted_images_per_second
from monai_diffae.networks import build_autoencoder

pytestmark = pytest.mark.filterwarnings("error")
_NO_LIMIT = 1e9


@pytest.fixture(scope="module")
def network():
    return build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=16, time_embed_channels=8)


def test_arithmetic_is_that_of_torchs_own_counter(network):
    """With arithmetic as the only limit, the speed follows from the FLOP of one real training step."""
    batch, counter = torch.zeros(4, 1, 32, 32), FlopCounterMode(display=False)
    with counter:
        network(batch, torch.zeros(4), batch).square().mean().backward()
    slow = Gpu(tflops=1e-6, bandwidth=_NO_LIMIT, memory_gib=1, precision="fp32")
    expected = 4 / (counter.get_total_flops() / (0.5 * 1e6))
    assert predicted_images_per_second(network, batch.shape, slow) == pytest.approx(expected, rel=0.01)


def test_a_fast_gpu_is_limited_by_the_start_of_operations(network):
    """Then a batch takes as long as a single image."""
    unlimited = Gpu(_NO_LIMIT, _NO_LIMIT, 1)
    one, eight = (predicted_images_per_second(network, (batch, 1, 32, 32), unlimited) for batch in (1, 8))
    assert eight == pytest.approx(8 * one, rel=1e-3)


def test_half_the_bandwidth_takes_at_most_twice_as_long(network):
    gpu = GPUS["a100"]
    full, half = (
        predicted_images_per_second(network, (256, 1, 64, 64), replace(gpu, bandwidth=gpu.bandwidth * share))
        for share in (1, 0.5)
    )
    assert 0.5 * full <= half < full


def test_volumes():
    network = build_autoencoder(3, base_channels=8, channel_mult=(1, 2), z_channels=16, time_embed_channels=8)
    assert predicted_images_per_second(network, (2, 1, 16, 16, 16), GPUS["l4"]) > 0
