"""Networks of MONAI and torchvision as encoders: their preprocessing, their features, frozen and not."""

import pytest
import torch
from monai.networks.nets import ViT, resnet18
from torch import nn
from torchvision.models import VisionTransformer, squeezenet1_1

from monai_diffae.errors import ConfigError
from monai_diffae.networks import EncoderAdapter, PlanarAdapter, build_autoencoder

UNET = {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "z_channels": 12, "time_embed_channels": 20}


class Seen(nn.Module):
    """Keeps what it is given, and gives the mean of each channel."""

    def forward(self, x):
        self.images = x
        return x.flatten(2).mean(dim=2)


def monai_resnet(spatial_dims=2, channels=3):
    torch.manual_seed(0)
    return resnet18(spatial_dims=spatial_dims, n_input_channels=channels, feed_forward=False)


def autoencoder(adapter, spatial_dims=2, frozen=True):
    return build_autoencoder(spatial_dims, encoder=adapter, encoder_frozen=frozen, **UNET)


def check_only_the_projection_is_trained(network, adapter):
    """Also BatchNorm's averages stay as they are."""
    network.train()
    assert not any(module.training for module in adapter.network.modules())
    assert adapter.projection.training
    before = {name: value.clone() for name, value in adapter.network.state_dict().items()}
    network.encode(torch.randn(2, 1, 32, 32)).square().mean().backward()
    assert all(parameter.grad is None for parameter in adapter.network.parameters())
    assert adapter.projection.weight.grad.abs().max() > 0
    after = adapter.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_images_are_prepared_as_the_network_expects_them():
    seen = Seen()
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    adapter = EncoderAdapter(seen, model_range=(-1, 1), mean=mean, std=std)
    x = torch.rand(2, 1, 6, 8) * 2 - 1
    features = adapter(x)
    expected = ((x + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(seen.images, expected)
    torch.testing.assert_close(features, expected.mean(dim=(2, 3)))
    colour = torch.rand(2, 3, 6, 8) * 2 - 1
    EncoderAdapter(seen, in_channels=3, mean=mean, std=std)(colour)
    torch.testing.assert_close(seen.images[:, 2], ((colour[:, 2] + 1) / 2 - mean[2]) / std[2])


@pytest.mark.parametrize("size", [(12, 16), (4, 6, 2)])
def test_images_are_resized(size):
    seen = Seen()
    adapter = EncoderAdapter(seen, channels=1, size=size, model_range=(0, 1))
    ramp = torch.linspace(0, 1, 8).view(1, 1, -1, 1).expand(2, 1, 8, 10)
    adapter(ramp if len(size) == 2 else ramp[..., None].expand(2, 1, 8, 10, 4))
    assert seen.images.shape == (2, 1, *size)
    assert seen.images.min() >= 0
    assert seen.images.max() <= 1
    torch.testing.assert_close(seen.images.mean(), torch.tensor(0.5))


@pytest.mark.parametrize("spatial_dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_network_of_monai_with_a_projection(spatial_dims):
    adapter = EncoderAdapter(monai_resnet(spatial_dims), projection=nn.Linear(512, 12))
    network = autoencoder(adapter, spatial_dims)
    assert network.size_divisors == (2,) * spatial_dims  # the UNet's
    x = torch.randn(2, 1, *(32,) * spatial_dims)
    assert network.encode(x).shape == (2, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert adapter.eval()(x).dtype == torch.float32
    assert network(x, torch.tensor([3, 5]), x).shape == x.shape


def test_frozen_is_the_network_and_not_the_projection():
    adapter = EncoderAdapter(monai_resnet(), projection=nn.Linear(512, 12))
    check_only_the_projection_is_trained(autoencoder(adapter), adapter)
    network = autoencoder(EncoderAdapter(monai_resnet(), projection=nn.Linear(512, 12)), frozen=False).train()
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_features_of_several_kinds():
    x = torch.randn(2, 1, 32, 32)
    maps = nn.Conv2d(3, 12, 4, stride=4)
    adapter = EncoderAdapter(maps)
    torch.testing.assert_close(adapter(x), maps(adapter.prepare(x)).mean(dim=(2, 3)))
    with_states = ViT(3, (32, 32), (16, 16), 12, 24, 1, 2, classification=True, num_classes=12, spatial_dims=2)
    assert EncoderAdapter(with_states)(x).shape == (2, 12)
    resnet = resnet18(spatial_dims=2, n_input_channels=3, num_classes=5)
    assert EncoderAdapter(resnet, head="fc")(x).shape == (2, 512)


def test_pretrained_weights_without_their_head():
    pretrained = resnet18(spatial_dims=2, n_input_channels=3, num_classes=10)
    adapter = EncoderAdapter(resnet18(spatial_dims=2, n_input_channels=3, num_classes=10), head="fc")
    adapter.load_pretrained(pretrained.state_dict())
    pretrained.fc = nn.Identity()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(adapter.eval()(x), pretrained.eval()(adapter.prepare(x)))
    other = resnet18(spatial_dims=2, n_input_channels=1, num_classes=10).state_dict()
    with pytest.raises(ConfigError, match=r"are not those of ResNet: 1 differ, the first is 'conv1.weight'; use"):
        adapter.load_pretrained(other)


def test_it_can_be_scripted():
    adapter = EncoderAdapter(monai_resnet(), size=(24, 24), mean=0.5, std=0.2, projection=nn.Linear(512, 12))
    network, x = autoencoder(adapter).eval(), torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


@pytest.fixture(scope="module")
def planar():
    """Two layers of a small network of torchvision, of three slices along each axis, in 2 x 2 cells."""
    torch.manual_seed(0)
    network, layers = squeezenet1_1(weights=None), ["features.3", "features.6"]  # of 128 and 256 channels
    return PlanarAdapter(network, layers, slices=3, cells=2, size=(64, 64), mean=0.5, std=0.25, head="classifier")


def test_features_of_a_volume_are_the_means_over_slices_along_each_axis(planar):
    volume = torch.rand(1, 1, 9, 12, 2) * 2 - 1
    features = planar(volume)
    assert features.shape == (1, planar.out_features) == (1, 3 * 4 * (128 + 256))
    slices = planar.prepare(volume[0].movedim(1, 0)[[1, 4, 7]])  # the middles of thirds of the first axis
    maps = planar.network.features[:4](slices), planar.network.features[:7](slices)
    expected = [nn.functional.adaptive_avg_pool2d(each, 2).flatten(1).mean(dim=0) for each in maps]
    torch.testing.assert_close(features[0, : 4 * 384], torch.cat(expected), rtol=1e-4, atol=1e-5)
    others = torch.cat([torch.rand(2, 1, 9, 12, 2), volume])
    torch.testing.assert_close(planar(others)[2], features[0])  # whatever else is in the batch
    image = volume[..., 0]  # a picture is its only slice
    torch.testing.assert_close(planar(image)[0, : 4 * 128], planar(volume[..., :1])[0, 2 * 4 * 384 :][: 4 * 128])


def test_a_planar_network_stays_as_it_is_while_its_projection_is_trained(planar):
    adapter = PlanarAdapter(planar.network, ["features.6"], 2, size=(64, 64), projection=nn.Linear(9 * 256, 12))
    check_only_the_projection_is_trained(build_autoencoder(2, encoder=adapter, **UNET), adapter)


def test_a_planar_network_can_be_exported_for_any_number_of_volumes():
    adapter, x = PlanarAdapter(nn.Conv2d(3, 4, 3), size=(8, 8)), torch.randn(3, 1, 8, 9, 10)
    exported = torch.export.export(adapter, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.testing.assert_close(exported(x), adapter(x))


@pytest.mark.parametrize(("layer", "num"), [("encoder.ln", 12 * (1 + 4)), ("conv_proj", 12 * 4), ("", 1000)])
def test_features_of_a_vision_transformer(layer, num):
    vit = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=12, mlp_dim=8).eval()
    adapter = PlanarAdapter(vit, [layer] if layer else [], 2, cells=2, size=(32, 32))
    x = torch.randn(1, 1, 32, 32)
    assert adapter(x).shape == (1, num)
    if layer == "encoder.ln":  # the class token, and the 4 x 4 others in 2 x 2 cells
        tokens = vit.encoder(torch.cat([vit.class_token, vit._process_input(adapter.prepare(x))], dim=1))
        torch.testing.assert_close(adapter(x)[:, :12], tokens[:, 0])
        torch.testing.assert_close(adapter(x)[0, 12::4], tokens[0, [1, 2, 5, 6]].mean(dim=0))


def test_layers_that_give_no_features_are_named(planar):
    with pytest.raises(ConfigError, match=r"layers: SqueezeNet has no layer 'layer4'; it has features, classifier"):
        PlanarAdapter(planar.network, ["layer4"])
    with pytest.raises(ConfigError, match=r"layers: 'output' gives no feature map, vector or tokens"):
        PlanarAdapter(nn.Flatten(0))
