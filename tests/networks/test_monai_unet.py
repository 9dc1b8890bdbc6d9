"""MONAI's networks in a diffusion autoencoder: its UNets as the decoder, its classification networks as the encoder."""

import pytest
import torch
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets import DenseNet, DiffusionModelUNet, EfficientNetBN, SEResNet50, ViT, resnet18

from monai_diffae.errors import ConfigError
from monai_diffae.networks import DiffusionAutoencoder, SemanticEncoder

Z = 16
SIZE = {2: 32, 3: 16}
CONDITIONED = {"with_conditioning": True, "cross_attention_dim": Z}


def monai_unet(spatial_dims=2, maisi=False, **arguments):
    kind, widths = (DiffusionModelUNetMaisi, "num_channels") if maisi else (DiffusionModelUNet, "channels")
    settings = {widths: (8, 16), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 8}
    torch.manual_seed(0)
    network = kind(spatial_dims, 1, 1, **{**settings, "num_head_channels": 8, **CONDITIONED, **arguments})
    for weight in network.parameters():
        if not weight.any():  # of the last layer and of each attention
            torch.nn.init.normal_(weight, std=0.1)
    return network


def encoder(spatial_dims=2, z_channels=Z):
    return SemanticEncoder(spatial_dims, z_channels=z_channels, base_channels=8, channel_mult=(1, 2), num_res_blocks=1)


def encoders(spatial_dims):
    size = (SIZE[spatial_dims],) * spatial_dims
    each = {"spatial_dims": spatial_dims, "in_channels": 1, "num_classes": Z}
    yield DenseNet(spatial_dims, 1, Z, init_features=8, growth_rate=4, block_config=(1, 1))
    if spatial_dims == 2:  # in 3D it needs 32 voxels along each axis, which takes long
        yield EfficientNetBN("efficientnet-b0", False, **each)
    yield SEResNet50(**each, layers=(1, 1, 1, 1))
    yield ViT(1, size, (8,) * spatial_dims, 12, 24, 1, 2, classification=True, num_classes=Z, spatial_dims=spatial_dims)
    yield resnet18(spatial_dims=spatial_dims, n_input_channels=1, num_classes=Z)


@pytest.mark.parametrize("maisi", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_each_encoder_of_monai_and_each_unet_of_monai_make_an_autoencoder_that_can_be_trained(spatial_dims, maisi):
    x0, x_t = torch.randn(2, 2, 1, *[SIZE[spatial_dims]] * spatial_dims)
    t = torch.tensor([3, 700])
    for network in encoders(spatial_dims):
        both = DiffusionAutoencoder(network, monai_unet(spatial_dims, maisi))
        assert (both.spatial_dims, both.z_channels, both.size_divisors) == (spatial_dims, Z, (2,) * spatial_dims)
        both(x_t, t, x0).square().mean().backward()
        assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.parameters())


@pytest.mark.parametrize("maisi", [False, True])
def test_one_token_of_z_sem_is_the_context_that_monai_takes(maisi):
    network = monai_unet(maisi=maisi).eval()
    both, z_sem = DiffusionAutoencoder(encoder(), network), torch.randn(2, Z)
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    assert torch.equal(both(x_t, t, z_sem), network(x_t, t, z_sem[:, None]))


def test_tokens_that_change_places_give_the_same_image_as_monai_gives_them_no_position():
    both = DiffusionAutoencoder(encoder(), monai_unet(cross_attention_dim=4)).eval()
    x_t, t, z_sem = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.randn(2, Z)
    assert both.unet.num_tokens == 4
    out = both(x_t, t, z_sem)
    torch.testing.assert_close(both(x_t, t, z_sem.unflatten(1, (4, 4)).flip(1).flatten(1)), out)
    assert not torch.allclose(both(x_t, t, z_sem.flip(1)), out, atol=1e-4)  # within a token the order matters


def test_checkpoints_that_the_unet_of_monai_does_not_have_are_a_warning(caplog):
    DiffusionAutoencoder(encoder(), monai_unet(), use_checkpoint=True)
    assert "use_checkpoint: has no effect on MONAI's DiffusionModelUNet" in caplog.text


def test_the_size_of_z_sem_is_told_by_the_encoder_an_argument_or_the_unet():
    unknown = resnet18(spatial_dims=2, n_input_channels=1, num_classes=12)
    assert DiffusionAutoencoder(unknown, monai_unet(cross_attention_dim=4), z_channels=12).z_channels == 12
    assert DiffusionAutoencoder(encoder(z_channels=8), monai_unet(cross_attention_dim=4)).z_channels == 8
    with pytest.raises(ConfigError, match=r"set z_channels to 12"):
        DiffusionAutoencoder(unknown, monai_unet())(torch.zeros(1, 1, 32, 32))


def test_images_that_are_too_small_for_an_encoder_of_monai_are_refused_in_one_line():
    network = DiffusionAutoencoder(DenseNet(3, 1, Z), monai_unet(3)).eval()
    with pytest.raises(ConfigError, match=r"the encoder DenseNet cannot encode images of 8 x 8 x 8 \("):
        network.encode(torch.zeros(1, 1, 8, 8, 8))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_an_encoder_for_images_of_other_dimensions_is_refused_in_one_line(spatial_dims):
    other = resnet18(spatial_dims=5 - spatial_dims, n_input_channels=1, num_classes=Z)
    network = DiffusionAutoencoder(other, monai_unet(spatial_dims))
    for batch in (1, 2):  # of one image, torch takes the batch for the channels
        with pytest.raises(ConfigError, match=r"the encoder ResNet cannot encode .* of the encoder"):
            network.encode(torch.zeros(batch, 1, *[32] * spatial_dims))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"with_conditioning": False, "cross_attention_dim": None}, "no cross-attention"),
        ({"cross_attention_dim": 5}, "multiple of cross_attention_dim, which is 5"),
        ({"num_class_embeds": 3}, "takes num_class_embeds"),
        ({"maisi": True, "include_spacing_input": True}, "takes include_spacing_input"),
    ],
)
def test_unets_that_need_something_else_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        DiffusionAutoencoder(encoder(), monai_unet(**arguments))


def test_small_axes_of_others_convolutions_have_right_gradients_in_bfloat16():
    both = DiffusionAutoencoder(resnet18(spatial_dims=3, n_input_channels=1, num_classes=Z), monai_unet(3)).eval()
    x, t = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    gradients = []
    for enabled in (False, True):
        both.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (both(x, t, x).float() * x).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in both.unet.parameters()]))
    exact, half = gradients
    assert (half - exact).norm() < 0.05 * exact.norm()
