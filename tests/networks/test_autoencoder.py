"""Both networks of a diffusion autoencoder: shapes, conditions, precision, and how they are built."""

import json
import math

import pytest
import torch
from tiny_bundles import small_autoencoder
from torch import nn

from monai_diffae.errors import ConfigError
from monai_diffae.networks import DenoisingUNet, DiffusionAutoencoder, SemanticEncoder, build_autoencoder, preset
from monai_diffae.networks.arguments import anisotropic_strides, strides_product

SMALL = {"base_channels": 8, "attention_levels": (1,), "z_channels": 12, "time_embed_channels": 20}


def small(spatial_dims=2, **overrides):
    return small_autoencoder(spatial_dims, std=0.1, **{**SMALL, **overrides})


def images(network, channels=1):
    torch.manual_seed(1)
    shape = (2, channels, 8, 12, 4)[: network.spatial_dims + 2]
    return torch.randn(shape), torch.randn(shape), torch.tensor([3, 700])


def test_channels_odd_widths_and_sizes_that_both_networks_take():
    network = small(3, in_channels=4, encoder_in_channels=2)
    _, x_t, t = images(network, channels=4)
    x0 = torch.randn(2, 2, *x_t.shape[2:])
    assert network.encode(x0).shape == (2, 12)
    assert network(x_t, t, x0).shape == x_t.shape
    network = small(base_channels=5, channel_mult=(1, 1, 3), attention_levels=(0, 2), num_heads=1)
    x0, x_t, t = images(network)
    assert network(x_t[..., :8], t, x0[..., :8]).shape == (2, 1, 8, 8)
    x = torch.zeros(1, 1, 20, 24)  # the UNet's levels divide 20, the encoder's do not
    for call in (network.encode, network, lambda x: network(x, torch.tensor([1]), torch.zeros(1, 12))):
        with pytest.raises(ConfigError, match=r"20 x 24: .* multiples of 8; crop, pad or resize to 16 or 24 x 24$"):
            call(x)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_context_may_be_the_image_or_its_z(spatial_dims):
    network = small(spatial_dims)
    x0, x_t, t = images(network)
    expected = network(x_t, t, x0)
    z_sem = network.encode(x0)
    for out in (
        network(x_t, t, z_sem),
        network(x_t, t, context=z_sem[:, None]),
        network.unet(x=x_t, timesteps=t, context=z_sem),
        network(x_t, t.float(), z_sem),
    ):
        torch.testing.assert_close(out, expected)
    assert not torch.allclose(expected, network(x_t, t + 100, x0))
    assert not torch.allclose(expected, network(x_t, t, -x0))
    # the image alone is time step 0 with its own z
    torch.testing.assert_close(network(x0), network(x0, torch.zeros(2, dtype=torch.long), z_sem))


@pytest.mark.parametrize("z_grid", [1, 2])
def test_checkpointing_gives_the_same_gradients(z_grid):
    gradients = []
    for use_checkpoint in (False, True):
        network = small(use_checkpoint=use_checkpoint, dropout=0.2, z_grid=z_grid).train()
        x0, x_t, t = images(network)
        torch.manual_seed(5)
        network(x_t, t, x0).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize(("spatial_dims", "z_grid"), [(2, 2), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_scripted_network_gives_the_same(spatial_dims, z_grid, tmp_path):
    network = small(spatial_dims, use_checkpoint=True, z_grid=z_grid)
    x0, x_t, t = images(network)
    torch.jit.script(network).save(tmp_path / "network.ts")
    scripted, z_sem = torch.jit.load(tmp_path / "network.ts"), network.encode(x0)
    for arguments in [(x0,), (x_t, t, x0), (x_t, t.float(), z_sem), (x_t, t, z_sem[:, None])]:
        torch.testing.assert_close(scripted(*arguments), network(*arguments))


@pytest.mark.parametrize(("spatial_dims", "z_grid"), [(2, 1), (3, (1, 3, 1))])
def test_bfloat16_autocast_and_channels_last(spatial_dims, z_grid):
    network = small(spatial_dims, z_grid=z_grid).train()
    x0, x_t, t = images(network)
    expected = network(x_t, t, x0)
    memory_format = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    network = network.to(memory_format=memory_format)
    x0, x_t = (x.contiguous(memory_format=memory_format) for x in (x0, x_t))
    torch.testing.assert_close(network(x_t, t, x0), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x_t, t, x0)
    assert out.dtype == torch.float32
    assert (out - expected).std() < 0.05 * expected.std()
    out.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert network.bfloat16()(x_t.bfloat16(), t, x0.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_it_gives_what_its_two_networks_give_to_the_bit(spatial_dims):
    strides = None if spatial_dims == 2 else [(2, 2, 1), 2]
    encoder = SemanticEncoder(spatial_dims, 1, 12, 8, (1, 2, 2), 1, (1,), strides=strides, z_grid=2)
    unet = DenoisingUNet(spatial_dims, 1, 8, (1, 2), 1, (1,), 1, 12, 20, strides=strides, z_grid=2)
    network = DiffusionAutoencoder(encoder, unet).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x0, x_t, t = images(network)
    z_sem = encoder(x0)
    assert torch.equal(network.encode(x0), z_sem)
    assert torch.equal(network(x_t, t, x0), unet(x_t, t, z_sem))
    # names that the weights of every trained bundle have
    names = {f"{part}.{name}" for part in ("unet", "encoder") for name in getattr(network, part).state_dict()}
    assert network.state_dict().keys() == names
    in_bundles = ("encoder.stem.weight", "encoder.head.4.weight", "unet.z_map.linear.weight", "unet.time_embed.0.bias")
    assert set(in_bundles) < names


def test_weights_of_which_none_is_of_this_network_are_refused():
    network = small()
    weights = network.state_dict()
    network.load_state_dict({"encoder.head.4.bias": weights["encoder.head.4.bias"]}, strict=False)
    with pytest.raises(ConfigError, match="no weights of this network"):
        network.load_state_dict({"network": weights}, strict=False)  # a checkpoint of a training
    with pytest.raises(RuntimeError, match="Missing key"):
        network.load_state_dict({})


# -- grids of z_sem -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spatial_dims", "grid"), [(2, (2, 3)), (3, (2, 3, 1))])
def test_cells_of_equal_weight_are_the_mean_over_the_image(spatial_dims, grid):
    of_cells = small(spatial_dims, encoder_channel_mult=(1, 2), z_grid=grid)
    x0, _, _ = images(of_cells)
    linear = of_cells.encoder.head[-1]
    of_one_cell = torch.randn(12, 16)
    linear.weight.data = of_one_cell.repeat_interleave(math.prod(grid), dim=1) / math.prod(grid)
    of_image = small(spatial_dims, encoder_channel_mult=(1, 2))
    weights = {name: value for name, value in of_cells.state_dict().items() if "z_map" not in name}
    of_image.load_state_dict({**weights, "encoder.head.4.weight": of_one_cell})
    torch.testing.assert_close(of_cells.encode(x0), of_image.encode(x0))


def test_a_grid_tells_where_something_is():
    last = torch.zeros(2, 16, 4, 4)
    last[0, :, :2], last[1, :, 2:] = 1, 1  # the same, above and below
    for grid, same in ((1, True), (2, False)):
        above, below = small(encoder_channel_mult=(1, 2), z_grid=grid).encoder.head(last)
        assert torch.allclose(above, below, atol=1e-5) == same
    with pytest.raises(ConfigError, match=r"^z_grid=.* is neither a whole number of 1 or more nor 2 of them$"):
        small(z_grid=(2, 2, 2))


@pytest.mark.parametrize(
    ("cells", "cell", "where"),
    [((2, 2), 1, (slice(0, 4), slice(6, 12))), ((2, 3, 1), 3, (slice(4, 8), slice(0, 4), slice(0, 4)))],
)
def test_the_unet_draws_a_cell_where_it_is(cells, cell, where):
    network = small(len(cells), z_grid=cells)
    drawn = network.unet.z_map
    _, x_t, t = images(network)
    z_sem = torch.randn(2, 12)
    before = network(x_t, t, z_sem)
    width = drawn.shape[0]
    weight = torch.zeros(width, math.prod(cells), 12)
    weight[:, cell, 0] = 1  # the first number of z_sem draws into this cell alone
    drawn.linear.weight.data, drawn.linear.bias.data = weight.flatten(0, 1), torch.zeros_like(drawn.linear.bias)
    expected = torch.zeros(1, width, *(8, 12, 4)[: len(cells)])
    expected[(slice(None), slice(None), *where)] = 2
    values = drawn.values(2 * torch.eye(12)[:1])
    torch.testing.assert_close(drawn(torch.zeros_like(expected), values), expected)
    assert not torch.allclose(network(x_t, t, z_sem), before)  # the UNet uses its map


def test_config_builds_the_same_network_again():
    network = build_autoencoder(
        2, base_channels=8, channel_mult=(1, 2), num_res_blocks=1, z_channels=12, encoder_base_channels=4,
        encoder_channel_mult=(1, 2, 2, 2), encoder_attention_levels=(), encoder_num_res_blocks=2, z_grid=(1, 2),
    ).eval()  # fmt: skip
    nn.init.normal_(network.unet.head[-1].weight)
    unet, encoder = (json.loads(json.dumps(part.config)) for part in (network.unet, network.encoder))
    again = DiffusionAutoencoder(SemanticEncoder(**encoder), DenoisingUNet(**unet)).eval()
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 8, 16)
    torch.testing.assert_close(again(x), network(x))
    assert (again.unet.config, again.encoder.config) == (network.unet.config, network.encoder.config)


# -- presets and flat arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unet", "encoder", "divisor"),
    [
        ("tiny", 1_428_131, 287_744, 8),
        ("paper_64", 71_518_723, 19_320_512, 16),  # with 3 channels 71.5 + 19.3 M in the official code
        ("paper_128", 103_871_619, 24_673_536, 32),  # 103.9 + 24.7 M
        ("paper_256", 138_341_891, 30_150_400, 64),  # 138.3 + 30.2 M
    ],
)
def test_parameters_are_those_of_the_official_configurations(name, unet, encoder, divisor):
    with torch.device("meta"):
        network = preset(name, in_channels=3)
        assert preset(name, spatial_dims=3).unet.stem.weight.ndim == 5
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (network.unet, network.encoder)]
    assert sizes == [unet, encoder]
    assert network.size_divisors == (divisor, divisor)


def test_arguments_that_no_network_has_are_one_line():
    with pytest.raises(ConfigError, match="^there is no argument 'z_chanels'; did you mean 'z_channels'"):
        build_autoencoder(2, z_chanels=3)
    with pytest.raises(ConfigError, match="^encoder_base_channels has no effect on an encoder of your own; omit it"):
        build_autoencoder(2, encoder=torch.nn.Identity(), encoder_base_channels=8)
    with pytest.raises(ConfigError, match="no preset 'paper_512': choose from tiny, paper_64"):
        preset("paper_512")
    with pytest.raises(ConfigError, match=r"preset 'tiny': .*'widht'"):
        preset("tiny", widht=3)


# -- strides per axis -----------------------------------------------------------------------------------------------


def test_thick_slices_keep_their_axis_until_the_others_are_as_thick():
    assert anisotropic_strides([64, 64, 64], [1, 1, 1], 4) == [[2, 2, 2]] * 4
    strides = anisotropic_strides([320, 280, 24], [0.6875, 0.6875, 6.5], 5)
    assert [s[2] for s in strides] == [1, 1, 1, 2, 2]
    assert [s[:2] for s in strides] == [[2, 2], [2, 2], [2, 2], [2, 1], [2, 1]]  # 280 = 8 * 35
    assert anisotropic_strides([48, 48, 11], [1, 1, 1], 2) == [[2, 2, 1]] * 2  # sizes that cannot be halved stay


@pytest.mark.parametrize("sizes", [[32, 48, 32], [17, 40, 24]])
def test_the_networks_take_the_size_that_strides_were_made_for(sizes):
    strides = anisotropic_strides(sizes, [1, 1, 4], 3)
    network = small_autoencoder(3, base_channels=2, channel_mult=(1, 2, 2), strides=strides)
    assert network.size_divisors == strides_product(3, strides)
    x = torch.randn(1, 1, *sizes)
    with torch.no_grad():
        assert network(x, torch.tensor([5]), x).shape == x.shape
    again = build_autoencoder(**network.unet.config)
    again.load_state_dict(network.state_dict())
    assert again.encoder.config == network.encoder.config
