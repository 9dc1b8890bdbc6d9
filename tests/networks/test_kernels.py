import os

import pytest
import torch

from monai_diffae.networks.kernels import exact_convolutions, reproducible_kernels


def state():
    cudnn = torch.backends.cudnn
    return (
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )  # fmt: skip


def test_exact_convolutions_choose_no_other_algorithm_and_keep_float32():
    before = state()
    with exact_convolutions():
        assert state()[:4] == (True, False, True, False)
    assert state() == before


def test_a_training_on_a_gpu_uses_deterministic_algorithms(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()
    with reproducible_kernels("cuda:1"):
        assert state() == (True, False, True, False, True, True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert state() == before
    with pytest.raises(ZeroDivisionError), reproducible_kernels("cuda"):
        raise ZeroDivisionError
    assert state() == before


def test_nothing_changes_on_a_cpu(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()
    with reproducible_kernels("cpu"):
        assert state() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
