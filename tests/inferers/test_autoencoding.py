import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.inferers.reconstructor import Reconstructor
from monai_diffae.networks import DiffusionAutoencoder


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = DiffusionAutoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=4, time_embed_channels=8)
    for parameter in network.parameters():
        if not parameter.any():  # the zero-initialised convolutions: without them z_sem changes nothing
            torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


@pytest.fixture
def images():
    return torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def inferer():
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
    return DiffusionAutoencoderInferer(schedule, num_steps=50, clip=False)


def test_a_call_is_the_training_forward_for_a_code_and_for_an_image(inferer, network, images):
    eps, t = torch.randn_like(images), torch.tensor([3, 400, 999])
    from_image = inferer(images, network, noise=eps, timesteps=t, condition=images)
    from_code = inferer(images, network, noise=eps, timesteps=t, condition=network.encode(images))
    torch.testing.assert_close(from_image, from_code)
    torch.testing.assert_close(from_image, network(inferer.schedule.q_sample(images, eps, t), t, images))


def test_inversion_and_decoding_return_the_image_and_other_noise_does_not(inferer, network, images):
    z_sem = inferer.encode(images, network)
    x_T = inferer.invert(images, network, z_sem)
    error = (inferer.decode(z_sem, x_T, network) - images).square().mean()
    other = (inferer.decode(z_sem, torch.randn_like(x_T), network) - images).square().mean()
    assert error < 1e-3
    assert other > 100 * error
    torch.testing.assert_close(inferer.invert(images, network), x_T)  # encodes by itself


def test_reconstruct_is_these_steps_in_one(inferer, network, images):
    z_sem = inferer.encode(images, network)
    expected = inferer.decode(z_sem, inferer.invert(images, network, z_sem), network)
    torch.testing.assert_close(inferer.reconstruct(images, network), expected)
    noise = torch.randn_like(images)
    expected = inferer.decode(z_sem, noise, network)
    torch.testing.assert_close(inferer.reconstruct(images, network, mode="z_sem", x_T=noise), expected)


def test_the_callback_sees_every_step_of_both_ways(inferer, network, images):
    inferer.num_steps, inferer.invert_steps = 4, 6
    seen = []
    inferer.reconstruct(images, network, callback=lambda *step: seen.append(step))
    assert len(seen) == 10


def test_codes_carry_no_gradient(inferer, network, images):
    z_sem = inferer.encode(images, network)
    assert not z_sem.requires_grad
    assert not inferer.invert(images, network, z_sem).requires_grad


def test_the_bundles_reconstructor_gives_one_noise_to_all(inferer, network, images):
    inferer.num_steps = 3
    from_z_sem = Reconstructor(inferer, mode="z_sem", seed=5)
    made = from_z_sem(images, network)
    torch.testing.assert_close(made[1:2], from_z_sem(images[1:2], network))
    assert not torch.allclose(made, from_z_sem(images, network, condition=images.flip(-1)))
    exact = Reconstructor(inferer, mode="x_T")(images, network)
    torch.testing.assert_close(exact, inferer.reconstruct(images, network))
    with pytest.raises(ConfigError, match="'z' is not one of x_T, z_sem"):
        Reconstructor(inferer, mode="z")
