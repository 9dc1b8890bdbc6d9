"""How much memory a network needs, predicted by running it once on tensors without data."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_diffae.diffusion.steps import KEPT_IMAGES
from monai_diffae.engines.precision import autocast
from monai_diffae.networks import FirstStage

GIB = 1024**3
_MIB = 1024**2
# glibc returns larger blocks to the system when they are freed. The memory of smaller ones stays with the process, with
# holes between the live blocks.
_LARGEST_KEPT = 32 * _MIB
# fitted to the measurements of benchmarks/memory.py
_CPU_LIBRARIES = 70 * _MIB
_CPU_HOLES = 0.2
_CUDA_BLOCKS = 0.1  # the caching allocator's rounding and cuDNN's workspaces: a guess, not measured


@dataclass(frozen=True)
class Memory:
    """Bytes that a process uses beyond those that it used after its imports.

    Attributes:
        states: weights and, for training, their average and AdamW's two moments; frozen weights count once.
        kept: activations that the forward pass keeps for the backward pass; 0 for inference.
        passing: what is added at the peak: gradients, recomputed activations, a layer's input and output.
        overhead: memory of libraries and allocator.
    """

    states: int
    kept: int
    passing: int
    overhead: int

    @property
    def total(self) -> int:
        """The sum, in bytes."""
        return self.states + self.kept + self.passing + self.overhead

    @property
    def gib(self) -> float:
        """The sum, in GiB."""
        return self.total / GIB


def training_memory(
    network: nn.Module,
    batch_shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Memory:
    """The peak memory of a training step of :class:`~monai_diffae.engines.DiffusionTrainer`.

    This is for AdamW, with an average of the weights, ``channels_last``, and gradients that are freed at each update.
    ``batch_shape`` is (B, C, *S). The network may be on the ``meta`` device, and this machine need not have ``device``.
    """
    with FakeTensorMode():
        step = _without_data(network, batch_shape)
        with _LiveBytes() as live:
            x0, x_t, target = (torch.empty(batch_shape) for _ in range(3))
            loss = (_predict_without_data(step, x0, x_t, dtype).float() - target).square().mean()
            kept = live.now
            loss.backward()
    return _memory(_size(network) + 3 * _size_of_trained(network), kept, live, torch.device(device))


def inference_memory(
    network: nn.Module,
    batch_shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Memory:
    """The peak memory of encoding, inverting and decoding, which does not depend on the number of steps.

    The arguments are those of :func:`training_memory`.
    """
    with FakeTensorMode(), torch.no_grad():
        evaluation = _without_data(network, batch_shape)
        with _LiveBytes() as live:
            images = [torch.empty(batch_shape) for _ in range(KEPT_IMAGES)]
            _predict_without_data(evaluation, images[0], images[1], dtype)
    return _memory(_size(network), 0, live, torch.device(device))


def first_stage_memory(
    first_stage: FirstStage,
    image_shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    decodes: bool = True,
) -> Memory:
    """The peak memory of encoding images (C, *S) one by one, and of decoding their latents, which needs more.

    The scale of the latents need not be known.
    """
    with FakeTensorMode(), torch.no_grad():
        autoencoder = _without_data(first_stage, ()).autoencoder
        with _LiveBytes() as live, autocast("cpu", dtype):
            latents = autoencoder.encode(torch.empty(1, *image_shape))[0]  # type: ignore[operator, union-attr]
            if decodes:
                autoencoder.decode(latents)  # type: ignore[operator, union-attr]
    return _memory(_size(first_stage), 0, live, torch.device(device))


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that a process can still use on a device; None if that is unknown.

    On a CPU, this is the memory that Linux calls available, within the limit of the process's container (cgroup 2).
    """
    device = torch.device(device)
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit = (group / "memory.max").read_text().strip() if (group / "memory.max").is_file() else "max"
    if limit == "max":
        return available
    inactive_files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
    used = int((group / "memory.current").read_text()) - int(inactive_files)
    return min(available, int(limit) - used)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that were created while it is active and are still alive, each once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.small = self.peak_small = self.peak_large = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        weakref.finalize(storage, self._forget, key, size)
        self._add(size)
        self.peak = max(self.peak, self.now)
        self.peak_small = max(self.peak_small, self.small)
        self.peak_large = max(self.peak_large, self.now - self.small)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._add(-size)

    def _add(self, size: int) -> None:
        self.now += size
        if abs(size) < _LARGEST_KEPT:
            self.small += size


def _size(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))


def _size_of_trained(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.parameters() if tensor.requires_grad)


def _memory(states: int, kept: int, live: _LiveBytes, device: torch.device) -> Memory:
    if device.type == "cpu":
        resident = live.peak_large + (1 + _CPU_HOLES) * live.peak_small
        overhead = _CPU_LIBRARIES + resident - live.peak
    else:
        overhead = _CUDA_BLOCKS * live.peak
    return Memory(states, kept, live.peak - kept, int(overhead))


def _without_data(network: nn.Module, batch_shape: Sequence[int]) -> nn.Module:
    """A copy of the network whose parameters have shape, dtype and memory format, but no data (FakeTensorMode)."""
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


def _predict_without_data(network: nn.Module, x0: Tensor, x_t: Tensor, dtype: torch.dtype) -> Tensor:
    """The network's prediction for a batch without data, in ``dtype``, as a training step computes it."""
    channels = getattr(network, "encoder_in_channels", None) or x0.shape[1]
    seen = x0 if channels == x0.shape[1] else torch.empty(len(x0), channels, *x0.shape[2:])
    timesteps = torch.empty(len(x0))
    with autocast("cpu", dtype):
        output: Tensor = network(_channels_last(x_t), timesteps, _channels_last(seen))
    return output
