"""What a training sets because of its device: the precision, and how tensors are copied to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from monai_diffae.policies import check_choice

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, device: torch.device | str) -> torch.dtype:
    """The dtype of autocast on a device, of this machine or another; ``auto`` is bf16 if it computes in it, else fp32.

    A CPU without bf16 instructions emulates them, at a tenth of the speed of fp32 or less. ``auto`` is fp32 on such a
    CPU, although PyTorch would accept bf16.

    Example:
        >>> resolve_precision("bf16", "cpu")
        torch.bfloat16
    """
    if precision != "auto":
        check_choice("precision", precision, ["auto", *_DTYPES])
        return _DTYPES[precision]
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if gpu_has_bf16(device) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32


def autocast(device: torch.device | str, dtype: torch.dtype) -> torch.autocast:
    """A context in which networks compute in ``dtype``, on any device; it has no effect for float32."""
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)


def gpu_has_bf16(device: torch.device) -> bool:
    """Whether a GPU has bf16: NVIDIA's since 2020, and AMD's; one of another machine is assumed to."""
    if torch.version.hip or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bf16 (AVX512-BF16 or AMX on x86, the bf16 extension on ARM)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    words = set(cpuinfo.read_text().split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class DeviceSettings:
    """The settings that follow from a device. The device need not be in this machine."""

    device: torch.device  # where to compute
    dtype: torch.dtype  # the dtype of autocast
    pin_memory: bool  # loaders put their batches into memory that a GPU copies by itself
    non_blocking: bool  # copies to the device do not wait for what it is computing

    @classmethod
    def of(cls, device: torch.device | str, precision: Precision = "auto") -> "DeviceSettings":
        """The settings for a device; precision ``auto`` is bf16 if the device computes in it, else fp32."""
        device = torch.device(device)
        return cls(device, resolve_precision(precision, device), device.type == "cuda", device.type != "cpu")


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor of the CPU to a device, from pinned memory, without waiting for what the device is computing."""
    settings = DeviceSettings.of(device, "fp32")
    if settings.pin_memory and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=settings.non_blocking)
