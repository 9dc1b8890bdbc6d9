"""Networks that several processes train together."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_diffae.errors import ConfigError


def memory_format(network: nn.Module, channels_last: bool) -> torch.memory_format:
    """The memory format of a network's weights and images: channels last for 2D or 3D, or torch's usual one."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last_3d if any(p.ndim == 5 for p in network.parameters()) else torch.channels_last


def distributed(network: nn.Module, device: torch.device | str, channels_last: bool = True) -> DistributedDataParallel:
    """Wrap a network for a training by several processes, whose gradients are averaged.

    The weights get their memory format first. DistributedDataParallel (torch 2.13) assumes that it never changes: if
    it changes later, the averaged gradients are assigned to other weights of the same layer, without an error.

    Args:
        network: on ``device``.
        device: the process's own.
        channels_last: as the trainer's.
    """
    device = torch.device(device)
    network.to(memory_format=memory_format(network, channels_last))  # type: ignore[call-overload]
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Give a network's weights a memory format."""
    strides = [weight.stride() for weight in network.parameters()]
    network.to(memory_format=memory_format)  # type: ignore[call-overload]
    is_changed = strides != [weight.stride() for weight in network.parameters()]
    if is_changed and isinstance(network, DistributedDataParallel):
        raise ConfigError(
            "train#trainer#network: DistributedDataParallel would mix up the gradients, because channels_last changes "
            "the weights' layout; copy multi_gpu_train.json again with init, or use monai_diffae.engines.distributed"
        )
