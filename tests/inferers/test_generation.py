import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.inferers import LatentInferer
from monai_diffae.networks import LatentMLP

CONSTANT = {"schedule": "linear_beta", "beta_start": 0.008, "beta_end": 0.008}
SCHEDULE = DiffusionSchedule(prediction="eps", **CONSTANT)


def untrained(z_channels=6, mean=0.0, std=1.0):
    torch.manual_seed(0)
    network = LatentMLP(z_channels, hidden_channels=32, num_layers=3).eval()
    network.set_statistics(torch.full((z_channels,), mean), torch.full((z_channels,), std))
    return network


class GaussianMLP(LatentMLP):
    """The best possible network where normalised z_sem is N(m, s^2): it returns the posterior mean of eps."""

    def __init__(self, m, s):
        super().__init__(z_channels=4, hidden_channels=4, num_layers=2)
        self.m, self.s = m, s

    def forward(self, x, timesteps, context=None):
        alpha, sigma = SCHEDULE.coefficients(timesteps, x)
        return sigma * (x - alpha * self.m) / (alpha**2 * self.s**2 + sigma**2)


def test_samples_have_the_mean_and_standard_deviation_of_the_data():
    network = GaussianMLP(m=1.5, s=0.4).eval()
    network.set_statistics(torch.full((4,), 10.0), torch.full((4,), 2.0))
    z_sem = LatentInferer(SCHEDULE).sample(network, 4000, seed=0)
    assert z_sem.dtype == torch.float32
    assert float(z_sem.mean()) == pytest.approx(10 + 2 * 1.5, abs=0.02)
    assert float(z_sem.std()) == pytest.approx(2 * 0.4, rel=0.03)
    far = GaussianMLP(m=50.0, s=1.0).eval()  # nothing is clipped, even if the schedule clips
    far.set_statistics(torch.zeros(4), torch.ones(4))
    clipping = DiffusionSchedule(prediction="eps", **CONSTANT, clip_range=(-1, 1))
    assert float(LatentInferer(clipping).sample(far, 8).mean()) == pytest.approx(50, abs=2)


def test_a_sample_does_not_depend_on_how_many_are_drawn_or_from_where():
    network, inferer = untrained(mean=3.0, std=2.0), LatentInferer(SCHEDULE, steps=5)
    whole = inferer.sample(network, 150, seed=4)
    assert whole.shape == (150, 6)
    for start, count in [(0, 1), (1, 1), (60, 10), (64, 64), (149, 1)]:
        assert torch.equal(inferer.sample(network, count, seed=4, start=start), whole[start : start + count])
    assert len(torch.unique(whole, dim=0)) == 150
    assert not torch.isclose(inferer.sample(network, 3, seed=5), whole[:3]).any()


def test_a_call_is_the_training_forward():
    network, inferer = untrained(), LatentInferer(SCHEDULE)
    z, eps, t = torch.randn(5, 6), torch.randn(5, 6), torch.tensor([0, 10, 500, 900, 999])
    output = inferer(z, network, noise=eps, timesteps=t, condition=z)
    assert torch.equal(output, network(SCHEDULE.q_sample(z, eps, t), t))
