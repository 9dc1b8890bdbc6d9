import pytest
import torch
import torch.nn.functional as F

from monai_diffae.errors import ConfigError
from monai_diffae.networks.arguments import level_widths
from monai_diffae.networks.blocks import (
    CellMeans,
    ChannelGroupNorm,
    HalvingPool,
    PositionAttention,
    TwoConditionBlock,
    ZMap,
    conv3,
    group_count,
)


def randomise(module):
    """Zero-initialised layers too, so that every path shows."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def test_groups_are_the_largest_divisor_up_to_32():
    assert [group_count(channels) for channels in (1, 8, 32, 37, 48, 64, 66, 97)] == [1, 8, 32, 1, 24, 32, 22, 1]


def test_group_norm_is_computed_in_float32():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 8, 8) * 3 + 100  # in bfloat16 the variance of 100 +- 3 is badly off
    norm = ChannelGroupNorm(64).bfloat16()
    expected = F.group_norm(x.bfloat16().float(), 32).bfloat16()
    torch.testing.assert_close(norm(x.bfloat16()), expected, rtol=2**-7, atol=1e-4)  # one last bit of bfloat16


def test_two_condition_block_is_time_first_then_z_before_silu():
    """The equations of the official code, step by step."""
    torch.manual_seed(0)
    block = randomise(TwoConditionBlock(2, 8, 12, time_channels=6, z_channels=5)).eval()
    x, t, z = torch.randn(2, 8, 4, 4), torch.randn(2, 6), torch.randn(2, 5)
    h = block.conv1(F.silu(F.group_norm(x, 8, block.norm1.weight, block.norm1.bias)))
    t_scale, t_shift = block.time_projection(F.silu(t))[..., None, None].chunk(2, dim=1)
    h = F.group_norm(h, 12, block.norm2.weight, block.norm2.bias) * (1 + t_scale) + t_shift
    h = h * (1 + block.z_projection(F.silu(z))[..., None, None])
    expected = block.skip(x) + block.conv2(F.silu(h))
    torch.testing.assert_close(block(x, t, block.z_scale(z)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [(1, 2), (2, 2, 2), (2, 2, 1)])
def test_halving_pool_is_the_mean_of_neighbors(stride):
    x = torch.randn(2, 3, *(8, 6, 4)[: len(stride)])
    pool = F.avg_pool2d if len(stride) == 2 else F.avg_pool3d
    torch.testing.assert_close(HalvingPool(stride)(x), pool(x, stride))


@pytest.mark.parametrize(("size", "kernel_size"), [((2, 3, 2), 3), ((2, 8, 8), 3), ((1, 2, 2), 3), ((2, 3, 2), 1)])
def test_gradients_of_3d_convolutions_in_bfloat16(size, kernel_size):
    """With oneDNN 3.12 half of the weights' gradient of ``nn.Conv3d`` is left unwritten for a first axis of 2."""
    torch.manual_seed(0)
    plain = torch.nn.Conv3d(16, 16, kernel_size, padding=kernel_size // 2)
    ours = conv3(3, 16, 16) if kernel_size == 3 else torch.nn.Conv3d(16, 16, 1)  # as in skip connections
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 16, *size)
    plain(x).square().mean().backward()
    for _ in range(5):
        freed = [torch.full((n,), float("nan")) for n in range(100, 5000, 100)]  # what unwritten memory would show
        del freed
        ours.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = ours(x)
        out.float().square().mean().backward()
        error = (ours.weight.grad - plain.weight.grad).norm() / plain.weight.grad.norm()
        assert error < 0.02


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_is_the_softmax_of_scaled_products(num_heads):
    torch.manual_seed(0)
    attention = randomise(PositionAttention(8, num_heads))
    x = torch.randn(2, 8, 4, 3)
    qkv = attention.qkv(attention.norm(x).flatten(2).transpose(1, 2)).transpose(1, 2)
    q, k, v = qkv.reshape(2 * num_heads, 3 * 8 // num_heads, 12).chunk(3, dim=1)  # the official order of heads
    weights = torch.softmax(q.transpose(1, 2) @ k * (8 // num_heads) ** -0.5, dim=-1)
    h = (v @ weights.transpose(1, 2)).reshape(2, 8, 12)
    expected = x + attention.out(h.transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)


def test_what_gives_no_network_is_refused():
    with pytest.raises(ConfigError, match="num_heads=3 does not divide a width of 8"):
        PositionAttention(8, 3)
    with pytest.raises(ConfigError, match="attention at level 2: there are levels 0 to 1"):
        level_widths(8, (1, 2), attention_levels=(2,))
    with pytest.raises(ConfigError, match="give no usable widths"):
        level_widths(8, (), attention_levels=())


@pytest.mark.parametrize(("cells", "size"), [((2, 3), (5, 7)), ((4, 4), (2, 3)), ((2, 2, 1), (5, 2, 3))])
def test_products_with_matrices_give_what_pooling_to_cells_gives(cells, size, monkeypatch):
    """They replace PyTorch's adaptive pooling in an export and on a GPU."""
    x, z_sem, means, z_map = torch.randn(2, 3, *size), torch.randn(2, 4), CellMeans(cells), ZMap(3, 4, cells)
    torch.nn.init.normal_(z_map.linear.weight)
    pooled, drawn = means(x), z_map(x, z_map.values(z_sem))
    assert not torch.equal(drawn, x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(means(x), pooled, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z_map(x, z_map.values(z_sem)), drawn, rtol=1e-6, atol=1e-6)
