import os

import pytest
import torch
from torch import nn

from monai_diffae.networks.kernels import exact_convolutions, reproducible_kernels


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


def test_a_small_optimiser_step_is_the_same_to_the_bit_with_any_number_of_threads(two_threads):
    def trained(threads):
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(size, generator=generator)) for size in (1, 65, 4097, 40001)]
        torch.set_num_threads(threads)
        optimizer = torch.optim.AdamW(weights, fused=True)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        return [weight.detach() for weight in weights]

    for one, two in zip(trained(1), trained(2), strict=True):
        assert torch.equal(one, two)
