import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer, Reconstructor


@pytest.fixture
def inferer():
    schedule = DiffusionSchedule(schedule="rectified_flow", prediction="v")
    return DiffusionAutoencoderInferer(schedule, steps=3, clip=False)


def test_without_ids_all_images_get_the_same_noise(inferer, network, images):
    from_z_sem = Reconstructor(inferer, mode="z_sem", seed=5)
    made = from_z_sem(images, network)
    torch.testing.assert_close(made[1:2], from_z_sem(images[1:2], network))
    assert not torch.allclose(made, from_z_sem(images, network, condition=images.flip(-1)))
    exact = Reconstructor(inferer, mode="x_T")(images, network)
    torch.testing.assert_close(exact, inferer.reconstruct(images, network))
    with pytest.raises(ConfigError, match="'z' is not one of x_T, z_sem"):
        Reconstructor(inferer, mode="z")


def test_the_noise_of_a_case_is_a_function_of_its_id_and_the_seed(inferer, network, images):
    ids = ["a", "b", "c"]
    made = Reconstructor(inferer, mode="z_sem", seed=5)(images, network, ids=ids)
    alone = Reconstructor(inferer, mode="z_sem", seed=5)(images[1:2], network, ids=["b"])
    torch.testing.assert_close(made[1:2], alone)
    other_id = Reconstructor(inferer, mode="z_sem", seed=5)(images[1:2], network, ids=["d"])
    other_seed = Reconstructor(inferer, mode="z_sem", seed=6)(images[1:2], network, ids=["b"])
    assert min((alone - other_id).abs().max(), (alone - other_seed).abs().max()) > 0.1
    noise = image_noise((1, 16, 16), 5, [seed_of(name) for name in ids])
    z_sem = inferer.encode(images, network)
    torch.testing.assert_close(made, inferer.reconstruct(images, network, mode="z_sem", x_T=noise))
    decoded, x_T = Reconstructor(inferer, mode="z_sem", seed=5).decode(images, network, z_sem, ids)
    torch.testing.assert_close(decoded, made)
    assert torch.equal(x_T, noise)
    decoded, x_T = Reconstructor(inferer).decode(images, network, z_sem)
    torch.testing.assert_close(x_T, inferer.round_trip(images, network, z_sem)[0])
