import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.inferers import DiffusionAutoencoderInferer, Reconstructor, estimate_from_noised


@pytest.fixture
def inferer():
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v", clip_range=(-1, 1))
    return DiffusionAutoencoderInferer(schedule, steps=3, clip=False)


def test_the_noise_of_a_case_is_a_function_of_its_id_and_the_seed_and_without_ids_the_same(inferer, network, images):
    ids, from_z_sem = ["a", "b", "c"], Reconstructor(inferer, mode="z_sem", seed=5)
    without_ids = from_z_sem(images, network)
    torch.testing.assert_close(without_ids[1:2], from_z_sem(images[1:2], network))
    assert not torch.allclose(without_ids, from_z_sem(images, network, condition=images.flip(-1)))
    exact = Reconstructor(inferer, mode="x_T")(images, network)
    torch.testing.assert_close(exact, inferer.reconstruct(images, network))
    made, alone = from_z_sem(images, network, ids=ids), from_z_sem(images[1:2], network, ids=["b"])
    torch.testing.assert_close(made[1:2], alone)
    other_id = from_z_sem(images[1:2], network, ids=["d"])
    other_seed = Reconstructor(inferer, mode="z_sem", seed=6)(images[1:2], network, ids=["b"])
    assert min((alone - other_id).abs().max(), (alone - other_seed).abs().max()) > 0.1
    noise = image_noise((1, 16, 16), 5, [seed_of(name) for name in ids])
    z_sem = inferer.encode(images, network)
    torch.testing.assert_close(made, inferer.reconstruct(images, network, mode="z_sem", x_T=noise))
    decoded, x_T = from_z_sem.decode(images, network, z_sem, ids)
    torch.testing.assert_close(decoded, made)
    assert torch.equal(x_T, noise)
    decoded, x_T = Reconstructor(inferer).decode(images, network, z_sem)
    torch.testing.assert_close(x_T, inferer.round_trip(images, network, z_sem)[0])


def test_draws_are_averaged_and_the_first_is_that_of_a_single_one(inferer, network, images):
    ids, z_sem = ["a", "b", "c"], inferer.encode(images, network)

    def reconstruct(draws, rows=slice(None), seed=5):
        reconstructor = Reconstructor(inferer, "z_sem", seed, draws)
        return reconstructor.decode(images[rows], network, z_sem[rows], ids[rows])

    (one, noise), (mean, first_noise) = reconstruct(1), reconstruct(4)
    assert torch.equal(noise, first_noise)
    torch.testing.assert_close(reconstruct(4, slice(1, 2))[0], mean[1:2])
    assert torch.equal(reconstruct(4)[0], mean)
    # decoded one by one, with noise that no two draws share
    draws = [[seed_of(name), *(seed_of(seed_of(name), "draw", i) for i in (1, 2, 3))] for name in ids]
    noises = torch.stack([image_noise((1, 16, 16), 5, row) for row in draws])
    assert torch.equal(noises[:, 0], noise)
    single = torch.stack([inferer.decode(z_sem, network, noises[:, i].contiguous()) for i in range(4)])
    torch.testing.assert_close(mean, single.mean(dim=0))
    torch.testing.assert_close(one, single[0])
    assert single.std(dim=0).mean() > 1e-3
    spread = [(reconstruct(n)[0] - reconstruct(n, seed=6)[0]).square().mean() for n in (1, 16)]
    assert spread[1] < spread[0] / 4  # the mean depends less on the noise


def test_an_image_has_the_same_estimate_whatever_the_others_are(inferer, network, images):
    z_sem = inferer.encode(images, network)
    together = estimate_from_noised(images, network, z_sem, inferer, draws=3)
    alone = estimate_from_noised(images[1:2], network, z_sem[1:2], inferer, draws=3)
    assert together.dtype == torch.float32
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together, estimate_from_noised(images, network, z_sem, inferer, draws=3, seed=1))


def test_a_perfect_network_returns_the_image(inferer, images):
    class Perfect(torch.nn.Module):
        """Knows x0, so it predicts the true velocity."""

        def __init__(self):
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(1))  # tells the device

        def forward(self, x, t, z_sem):
            alpha, sigma = inferer.schedule.coefficients(t, x)
            return (x - alpha * images[:1]) / sigma - images[:1]

    z_sem = torch.zeros(1, 4)
    estimate = estimate_from_noised(images[:1], Perfect(), z_sem, inferer, noise_levels=(0.2, 0.7), draws=2)
    torch.testing.assert_close(estimate, images[:1], atol=1e-4, rtol=0)


def test_more_noise_keeps_less_of_the_image(inferer, network, images):
    z_sem = torch.zeros(3, 4)

    def change(level):
        """How much the estimates of two images with the same z_sem and noise differ."""
        estimates = estimate_from_noised(images, network, z_sem, inferer, noise_levels=(level,), draws=2)
        return (estimates[0] - estimates[1]).abs().mean()

    assert change(1.0) == pytest.approx(0, abs=1e-3)
    assert change(0.1) > change(0.5) > change(1.0)
