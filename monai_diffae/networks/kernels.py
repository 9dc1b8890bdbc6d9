"""Which kernels a GPU may use, so that the same input gives the same output. On a CPU, nothing changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions on a GPU give the same bits each time, and compute float32 as float32.

    cuDNN's search for the fastest algorithm (``benchmark``) is off, because it may choose another one next time. So is
    TF32, torch's default for convolutions: it keeps 10 of the 23 bits of float32, which an inversion cannot undo, and
    z_sem would differ from that of a CPU in the third digit. Convolutions in bf16 do not use TF32.
    """
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@contextmanager
def reproducible_kernels(device: torch.device | str) -> Iterator[None]:
    """A training on this device gives the same bits each time, so that a resumed one equals an uninterrupted one.

    Beside :func:`exact_convolutions`, a GPU uses deterministic algorithms for the gradients of attention, where torch
    has them, and cuBLAS a workspace of fixed size. An operation without such an algorithm logs a warning of torch. On
    other devices than CUDA, nothing changes.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by torch before the first product
    is_on = torch.are_deterministic_algorithms_enabled()
    is_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory  # would write each new tensor twice
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        with exact_convolutions():
            yield
    finally:
        torch.use_deterministic_algorithms(is_on, warn_only=is_warning)
        memory.fill_uninitialized_memory = fills
