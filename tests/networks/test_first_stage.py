import pytest
import torch
from tiny_bundles import tiny_kl

from monai_diffae.errors import ConfigError
from monai_diffae.networks import FirstStage


def make(spatial_dims=3, channels=(4, 8)):
    return FirstStage(tiny_kl(spatial_dims, channels, latent_channels=2)).eval()


def images(count=3, size=(8, 12, 16)):
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def first_stage():
    first_stage = make()
    first_stage.measure(images())
    return first_stage


def test_measured_latents_have_mean_0_a_channel_and_std_1():
    first_stage = make()
    first_stage.measure(images(5))
    latents = first_stage.encode(images(5))
    assert latents.shape == (5, *first_stage.latent_shape((1, 8, 12, 16))) == (5, 2, 4, 6, 8)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3, 4)), torch.zeros(2), atol=1e-5, rtol=0)
    assert float(latents.square().mean()) == pytest.approx(1, abs=1e-4)
    assert latents.std(dim=(0, 2, 3, 4))[0] != latents.std(dim=(0, 2, 3, 4))[1]  # one scale for all channels
    assert float(latents.abs().max()) > 2  # they are not clipped
    other = make()
    other.load_state_dict(first_stage.state_dict())  # the scale is saved with the weights
    assert torch.equal(other.encode(images(5)), latents)
    assert make(2).latent_shape((1, 16, 8, 5)) == (2, 8, 4, 5)  # slices of a 2D network stay


def test_the_images_alone_are_encoded_and_decoded_without_noise_and_decode_undoes_the_scale(first_stage):
    """One tensor, as MONAI's ``verify_net_in_out`` and exports need it; MONAI's own forward pass draws noise."""
    reconstruction = first_stage(images())
    assert torch.equal(reconstruction, make()(images()))
    torch.testing.assert_close(first_stage.autoencoder.reconstruct(images()), reconstruction, atol=1e-5, rtol=1e-4)
    decoded = first_stage.decode(first_stage.encode(images()))
    torch.testing.assert_close(decoded, reconstruction, atol=1e-5, rtol=1e-4)
    first_stage.image_range = (0.0, 0.1)
    assert float(decoded.max()) > 0.1
    assert torch.equal(first_stage(images()), reconstruction.clamp(0.0, 0.1))
    assert torch.equal(first_stage.decode(first_stage.encode(images())), decoded.clamp(0.0, 0.1))


def test_an_image_has_the_same_latents_and_back_whatever_the_others_are(first_stage):
    latents = first_stage.encode(images())
    assert torch.equal(latents[1:2], first_stage.encode(images()[1:2]))
    assert torch.equal(first_stage.decode(latents)[1:2], first_stage.decode(latents[1:2]))


def test_what_cannot_be_used_is_refused(first_stage):
    with pytest.raises(ConfigError, match="scale of the latents is not known"):
        make().encode(images())
    with pytest.raises(ConfigError, match=r"multiples of 2"):
        first_stage.encode(images(size=(8, 8, 7)))
    with pytest.raises(ConfigError, match="built for 2"):
        first_stage.decode(torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(ConfigError, match="must be MONAI's AutoencoderKL"):
        FirstStage(torch.nn.Identity())
    for parameter in first_stage.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(ConfigError, match="standard deviation is 0"):
        first_stage.measure(images())


@pytest.mark.parametrize(
    ("patch", "image", "says"),
    [
        ([16, 16], [16, 16, 16], "3 sizes"),
        ([16, 18, 16], [32, 32, 32], "multiples of 4"),
        ([8, 16, 16], [32, 32, 32], "above 8"),
        ([32, 32, 32], [32, 32, 16], "larger than image_size"),
    ],
)
def test_patches_that_cannot_be_trained_with_are_refused(patch, image, says):
    first_stage = make(channels=(4, 8, 8))
    first_stage.check_patch_size([12, 16, 16], [16, 16, 16])
    with pytest.raises(ConfigError, match=says):
        first_stage.check_patch_size(patch, image)
