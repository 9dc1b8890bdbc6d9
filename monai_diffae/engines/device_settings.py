"""What a training sets because of its device, decided in one place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diffae.engines.precision import Precision, resolve_precision


@dataclass(frozen=True)
class DeviceSettings:
    """The settings that follow from a device. The device need not be in this machine."""

    device: torch.device  # where to compute
    dtype: torch.dtype  # the dtype of autocast
    pin_memory: bool  # loaders put their batches into memory that a GPU copies by itself
    non_blocking: bool  # copies to the device do not wait for what it is computing

    @classmethod
    def of(cls, device: torch.device | str, precision: Precision = "auto") -> DeviceSettings:
        """The settings for a device; precision ``auto`` is bf16 if the device computes in it, else fp32."""
        device = torch.device(device)
        return cls(device, resolve_precision(precision, device), device.type == "cuda", device.type != "cpu")


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor of the CPU to a device, from pinned memory, without waiting for what the device is computing."""
    settings = DeviceSettings.of(device, "fp32")
    if settings.pin_memory and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=settings.non_blocking)
