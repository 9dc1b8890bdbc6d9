import pytest
import torch

from monai_diffae.diffusion import DiffusionSchedule
from monai_diffae.inferers import DiffusionAutoencoderInferer, encode_exactly
from monai_diffae.inferers.exact_encoding import images_at_once
from monai_diffae.networks import preset


def test_z_sem_is_the_same_to_the_bit_in_every_batch():
    torch.manual_seed(0)
    network = preset("tiny").eval()
    inferer = DiffusionAutoencoderInferer(DiffusionSchedule())
    images = torch.rand(20, 1, 32, 32) * 2 - 1
    z_sem = encode_exactly(images, inferer, network)
    assert len(z_sem) == 20
    torch.testing.assert_close(z_sem, inferer.encode(images, network), atol=1e-5, rtol=0)
    for part in (slice(0, 1), slice(3, 10), slice(19, 20)):
        assert torch.equal(encode_exactly(images[part], inferer, network), z_sem[part])


@pytest.mark.parametrize(("size", "expected"), [((64, 64), 16), ((128, 128), 8), ((64, 64, 32), 1), ((128,) * 3, 1)])
def test_large_images_are_encoded_one_by_one(size, expected):
    assert images_at_once(size) == expected
