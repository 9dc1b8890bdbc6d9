"""The backward pass of GroupNorm in channels_last on a CPU, beside PyTorch's own and one in float64."""

import pytest
import torch
import torch.nn.functional as F

from monai_diffae.networks.blocks import ChannelGroupNorm
from monai_diffae.networks.group_norm import ChannelsLastGroupNorm, has_faster_backward

OURS = "ChannelsLastGroupNormBackward"
SHAPES = [(3, 32, 32, 40), (2, 64, 64, 64), (3, 128, 32, 32), (2, 1024, 32, 32), (3, 16, 8, 16, 12), (2, 48, 8, 16, 16)]
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 3e-3}


def in_channels_last(shape, dtype=torch.float32):
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.randn(shape).to(dtype).contiguous(memory_format=layout)


def random_norm(channels):
    norm = ChannelGroupNorm(channels)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm


def gradients(norm, x, dy):
    y = norm(x)
    inputs = [each for each in (x, norm.weight, norm.bias) if each.requires_grad]
    return type(y.grad_fn).__name__, torch.autograd.grad(y, inputs, dy)


def exact(norm, x, dy):
    x, weight, bias = (each.detach().double().requires_grad_() for each in (x, norm.weight, norm.bias))
    return torch.autograd.grad(F.group_norm(x, norm.num_groups, weight, bias, norm.eps), (x, weight, bias), dy.double())


def assert_near(actual, expected, rounding):
    for one, other in zip(actual, expected, strict=True):
        assert (one.double() - other).norm() <= rounding * other.norm()


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_are_equal_to_the_bit_and_gradients_up_to_rounding(shape, dtype):
    torch.manual_seed(0)
    norm, x, dy = random_norm(shape[1]), in_channels_last(shape, dtype).requires_grad_(), in_channels_last(shape, dtype)
    with torch.no_grad():
        expected = norm(x)
    assert torch.equal(norm(x), expected)
    for layout in (dy, dy.contiguous()):
        name, actual = gradients(norm, x, layout)
        assert name == OURS
        assert_near(actual, exact(norm, x, dy), ROUNDING[dtype])
    _, frozen = gradients(norm.requires_grad_(False), x, dy)
    assert torch.equal(frozen[0], actual[0])


@pytest.mark.parametrize("dtype", ROUNDING)
def test_an_image_of_one_value_has_finite_gradients(dtype):
    torch.manual_seed(0)
    norm, dy = random_norm(32), in_channels_last(SHAPES[0], dtype)
    x = torch.full_like(dy, 3).requires_grad_()
    name, (dx, d_weight, d_bias) = gradients(norm, x, dy)
    expected = exact(norm, x, dy)
    assert name == OURS
    assert_near(
        (dx, d_bias), (expected[0], expected[2]), 1e-2
    )  # as PyTorch's: the variance of its forward pass is not 0
    assert d_weight.abs().max() < 0.1


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 4, 3, 4, 5)])
def test_first_and_second_derivatives_by_differences_in_float64(shape):
    torch.manual_seed(0)
    x, weight, bias = (each.double().requires_grad_() for each in (in_channels_last(shape), *torch.randn(2, 4)))
    arguments = (x, weight, bias, 2, 1e-5)
    assert torch.autograd.gradcheck(ChannelsLastGroupNorm.apply, arguments)
    assert torch.autograd.gradgradcheck(ChannelsLastGroupNorm.apply, arguments)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 32, 32, 32),
        torch.zeros(2, 32, 16, 16).contiguous(memory_format=torch.channels_last),
        in_channels_last(SHAPES[0], torch.float16),
        torch.zeros(2, 1, 32, 32),
        torch.zeros(0, 32, 32, 32).contiguous(memory_format=torch.channels_last),
    ],
    ids=["contiguous", "small", "float16", "one channel", "no image"],
)
def test_other_images_use_the_backward_pass_of_pytorch(x):
    assert not has_faster_backward(x.requires_grad_())


def test_traced_scripted_and_exported_norms_are_those_of_pytorch():
    norm, x = random_norm(32), in_channels_last(SHAPES[0]).requires_grad_()
    expected = norm(x)
    traced, scripted = torch.jit.trace(norm, x), torch.jit.script(norm)
    exported = torch.export.export(norm, (x,))
    for graph, module in ((traced.graph, traced), (scripted.graph, scripted), (exported.graph, exported.module())):
        assert "group_norm" in str(graph)
        torch.testing.assert_close(module(x), expected)
