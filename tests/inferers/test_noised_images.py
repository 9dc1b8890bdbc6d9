"""Estimates from noised images: deterministic, and between the image itself and what z_sem alone gives."""

import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer, estimate_from_noised


@pytest.fixture
def inferer():
    return DiffusionAutoencoderInferer(DiffusionSchedule(schedule="rectified_flow", clip_range=(-1, 1)))


def test_an_image_has_the_same_estimate_whatever_the_others_are(inferer, network, images):
    z_sem = inferer.encode(images, network)
    together = estimate_from_noised(images, z_sem, network, inferer, draws=3)
    alone = estimate_from_noised(images[1:2], z_sem[1:2], network, inferer, draws=3)
    assert together.dtype == torch.float32
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together, estimate_from_noised(images, z_sem, network, inferer, draws=3, seed=1))


def test_a_perfect_network_returns_the_image_and_a_blind_one_does_not(inferer, images):
    class Perfect(torch.nn.Module):
        """Knows x0, so it predicts the true velocity."""

        def __init__(self):
            super().__init__()
            self.dummy = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t, z_sem):
            alpha, sigma = inferer.schedule.coefficients(t, x)
            return (x - alpha * images[:1]) / sigma - images[:1]

    z_sem = torch.zeros(1, 4)
    estimate = estimate_from_noised(images[:1], z_sem, Perfect(), inferer, noise_levels=(0.2, 0.7), draws=2)
    torch.testing.assert_close(estimate, images[:1], atol=1e-4, rtol=0)


def test_more_noise_keeps_less_of_the_image(inferer, network, images):
    z_sem = torch.zeros(3, 4)

    def change(level):
        """How much the estimates of two images with the same z_sem and noise differ."""
        estimates = estimate_from_noised(images, z_sem, network, inferer, noise_levels=(level,), draws=2)
        return (estimates[0] - estimates[1]).abs().mean()

    assert change(1.0) == pytest.approx(0, abs=1e-3)
    assert change(0.1) > change(0.5) > change(1.0)
    with pytest.raises(ConfigError, match="noise_levels must be above 0"):
        change(0.0)


def test_small_images_are_estimated_by_one_thread(inferer, network, images, two_threads):
    numbers = set()
    network.register_forward_hook(lambda *_: numbers.add(torch.get_num_threads()))
    estimate_from_noised(images, torch.zeros(3, 4), network, inferer, draws=2)
    assert numbers == {1}
