"""What a training sets because of its device, decided in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from monai_diffae.engines.precision import Precision, resolve_precision
from monai_diffae.errors import counted


@dataclass(frozen=True)
class DeviceSettings:
    """The settings that follow from a device. The device need not be in this machine.

    Attributes:
        device: where to compute.
        dtype: the dtype of autocast.
        pin_memory: loaders put their batches into memory that a GPU copies by itself.
        non_blocking: copies to the device do not wait for what it is computing.

    Example:
        >>> DeviceSettings.of("cuda:1", "bf16")
        DeviceSettings(device=device(type='cuda', index=1), dtype=torch.bfloat16, pin_memory=True, non_blocking=True)
        >>> DeviceSettings.of("cpu", "fp32")
        DeviceSettings(device=device(type='cpu'), dtype=torch.float32, pin_memory=False, non_blocking=False)
    """

    device: torch.device
    dtype: torch.dtype
    pin_memory: bool
    non_blocking: bool

    @classmethod
    def of(cls, device: torch.device | str, precision: Precision = "auto") -> DeviceSettings:
        """The settings for a device.

        Args:
            device: such as ``cuda:1``.
            precision: the dtype by its name; ``auto``: bf16 if the device computes in it, else fp32.

        Raises:
            ConfigError: the precision is unknown.
        """
        device = torch.device(device)
        return cls(device, resolve_precision(precision, device), device.type == "cuda", device.type != "cpu")


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor of the CPU to a device without waiting for what the device is computing.

    A copy from plain memory may wait for a GPU; one from pinned memory does not.

    Example:
        >>> values = torch.ones(2)
        >>> send(values, "cpu") is values
        True
    """
    settings = DeviceSettings.of(device, "fp32")
    if settings.pin_memory and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=settings.non_blocking)


def description(
    settings: DeviceSettings, memory_format: torch.memory_format, optimizer: torch.optim.Optimizer, loader: object
) -> str:
    """One line about how a training uses its device.

    Args:
        settings: the settings of its device.
        memory_format: that of the network and the images.
        optimizer: the optimiser.
        loader: the loader of its batches.

    Example:
        >>> optimizer = torch.optim.AdamW([torch.zeros(1)], fused=True)
        >>> loader = DataLoader([0], num_workers=2, persistent_workers=True)
        >>> description(DeviceSettings.of("cpu", "bf16"), torch.channels_last, optimizer, loader)
        'cpu: bfloat16, channels last, fused AdamW, 2 workers that persist'
    """
    is_cuda = settings.device.type == "cuda" and torch.cuda.is_available()
    name = f"{settings.device} ({torch.cuda.get_device_name(settings.device)})" if is_cuda else str(settings.device)
    layout = "contiguous" if memory_format is torch.contiguous_format else "channels last"
    is_fused = optimizer.defaults.get("fused") or False
    parts = [str(settings.dtype).removeprefix("torch."), layout]
    parts.append(f"{'fused ' if is_fused else ''}{type(optimizer).__name__}")
    if isinstance(loader, DataLoader):
        parts += _loading(loader)
    if settings.device.type == "cuda":
        parts.append("deterministic kernels, no TF32")
    return f"{name}: {', '.join(parts)}"


def _loading(loader: DataLoader[Any]) -> list[str]:
    """How a loader uses processes and memory."""
    number = loader.num_workers
    workers = counted(number, "worker") if number else "no workers"
    persist = f" that persist{'' if number > 1 else 's'}" if loader.persistent_workers else ""
    return [f"{workers}{persist}", *(["pinned memory"] if loader.pin_memory else [])]
