"""Networks that run on tensors with a shape but without data, to predict what memory and time they take."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffae.engines.precision import autocast


def without_data(network: nn.Module, batch_shape: Sequence[int]) -> nn.Module:
    """A copy of the network whose parameters have shape, dtype and the batches' memory format, but no data.

    It must be called within ``FakeTensorMode``.
    """
    copies: dict[int, Any] = {}
    for parameter in network.parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype)
        if empty.ndim == len(batch_shape):
            empty = _channels_last(empty)
        copies[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        copies[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return copy.deepcopy(network, copies)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last_3d if tensor.ndim == 5 else torch.channels_last)


def predict_without_data(network: nn.Module, x0: Tensor, x_t: Tensor, dtype: torch.dtype) -> Tensor:
    """The network's prediction for a batch without data, in ``dtype``, as a training step computes it."""
    channels = getattr(network, "encoder_in_channels", None) or x0.shape[1]
    seen = x0 if channels == x0.shape[1] else torch.empty(len(x0), channels, *x0.shape[2:])
    timesteps = torch.empty(len(x0))
    with autocast("cpu", dtype):
        output: Tensor = network(_channels_last(x_t), timesteps, _channels_last(seen))
    return output
