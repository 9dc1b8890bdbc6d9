import os

import pytest
import torch
import torch.nn.functional as F

from monai_diffae.networks.blocks import CellMeans, ChannelGroupNorm, HalvingPool, ZMap, conv3, group_count
from monai_diffae.networks.kernels import exact_convolutions, reproducible_kernels


def test_group_norm_is_computed_in_float32_with_the_largest_divisor_up_to_32_as_groups():
    assert [group_count(channels) for channels in (1, 8, 32, 37, 48, 64, 66, 97)] == [1, 8, 32, 1, 24, 32, 22, 1]
    torch.manual_seed(0)
    x = torch.randn(2, 64, 8, 8) * 3 + 100  # in bfloat16 the variance of 100 +- 3 is badly off
    norm = ChannelGroupNorm(64).bfloat16()
    expected = F.group_norm(x.bfloat16().float(), 32).bfloat16()
    torch.testing.assert_close(norm(x.bfloat16()), expected, rtol=2**-7, atol=1e-4)  # one last bit of bfloat16


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


@pytest.mark.parametrize(("cells", "size"), [((2, 3), (5, 7)), ((4, 4), (2, 3)), ((2, 2, 1), (5, 2, 3))])
def test_products_with_matrices_give_what_pooling_to_cells_gives(cells, size):
    """They replace PyTorch's adaptive pooling in an export and on a GPU."""
    x, z_sem, means, z_map = torch.randn(2, 3, *size), torch.randn(2, 4), CellMeans(cells), ZMap(3, 4, cells)
    torch.nn.init.normal_(z_map.linear.weight)
    pooled, drawn = means(x), z_map(x, z_map.values(z_sem))
    assert not torch.equal(drawn, x)
    exported = torch.export.export(means, (x,)), torch.export.export(z_map, (x, z_map.values(z_sem)))
    torch.testing.assert_close(exported[0].module()(x), pooled, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(exported[1].module()(x, z_map.values(z_sem)), drawn, rtol=1e-6, atol=1e-6)


def state():
    cudnn = torch.backends.cudnn
    return (
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )  # fmt: skip


def test_kernels_are_exact_or_deterministic_on_a_gpu_and_nothing_changes_on_a_cpu(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()
    with exact_convolutions():
        assert state()[:4] == (True, False, True, False)
    with reproducible_kernels("cpu"):
        assert state() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with reproducible_kernels("cuda:1"):
        assert state() == (True, False, True, False, True, True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert state() == before
    with pytest.raises(ZeroDivisionError), reproducible_kernels("cuda"):
        raise ZeroDivisionError
    assert state() == before
