"""How much memory a training needs, predicted by running its network once on tensors without data."""

import copy
import logging
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_diffae.diffusion.steps import KEPT_IMAGES
from monai_diffae.engines.precision import Precision, autocast, resolve_precision
from monai_diffae.errors import DiffAEError, MachineError
from monai_diffae.networks import FirstStage
from monai_diffae.networks.blocks import ChannelGroupNorm

logger = logging.getLogger(__name__)

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
    """Bytes that a process uses beyond those that it used after its imports."""

    states: int  # weights and, for training, their average and AdamW's two moments; frozen weights count once
    kept: int  # activations that the forward pass keeps for the backward pass; 0 for inference
    transient: int  # what is added at the peak: gradients, recomputed activations, a layer's input and output
    overhead: int  # memory of libraries and allocator

    @property
    def total(self) -> int:
        """The sum, in bytes."""
        return self.states + self.kept + self.transient + self.overhead

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
    """The peak memory of a step with AdamW and EMA on batches (B, C, *S); the network may be on the ``meta`` device."""
    with FakeTensorMode():
        step = _without_data(network, batch_shape)
        for module in step.modules():
            if isinstance(module, ChannelGroupNorm):
                module.uses_faster_backward = torch.device(device).type == "cpu"
        with _LiveBytes() as live:
            x0, x_t, target = (torch.empty(batch_shape) for _ in range(3))
            loss = (_predict(step, x0, x_t, dtype).float() - target).square().mean()
            kept = live.now
            loss.backward()
    trained = sum(weight.numel() * weight.element_size() for weight in network.parameters() if weight.requires_grad)
    return _memory(_size(network) + 3 * trained, kept, live, device)


def inference_memory(
    network: nn.Module,
    batch_shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Memory:
    """The peak memory of encoding, inverting and decoding, which does not depend on the number of steps."""
    with FakeTensorMode(), torch.no_grad():
        evaluation = _without_data(network, batch_shape)
        with _LiveBytes() as live:
            images = [torch.empty(batch_shape) for _ in range(KEPT_IMAGES)]
            _predict(evaluation, images[0], images[1], dtype)
    return _memory(_size(network), 0, live, device)


def first_stage_memory(
    first_stage: FirstStage,
    image_shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    decodes: bool = True,
) -> Memory:
    """The peak memory of encoding images (C, *S) one by one, and of decoding their latents, which needs more."""
    with FakeTensorMode(), torch.no_grad():
        autoencoder = _without_data(first_stage, ()).autoencoder
        with _LiveBytes() as live, autocast("cpu", dtype):
            latents = autoencoder.encode(torch.empty(1, *image_shape))[0]  # type: ignore[operator, union-attr]
            if decodes:
                autoencoder.decode(latents)  # type: ignore[operator, union-attr]
    return _memory(_size(first_stage), 0, live, device)


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that a process can still use on a device, within its container's limit (cgroup 2); None: unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    available: int = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    limit = (group / "memory.max").read_text().strip() if (group / "memory.max").is_file() else "max"
    if limit == "max":
        return available
    inactive_files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
    used = int((group / "memory.current").read_text()) - int(inactive_files)
    return min(available, int(limit) - used)


@dataclass(frozen=True)
class Workload:
    """The batches of a training run."""

    image_shape: Sequence[int]  #: (C, *S)
    device: torch.device | str  #: where the training runs
    precision: Precision  #: as in the configuration
    batch_size: int  #: images per training step
    val_batch_size: int  #: images per step of validation
    num_pictures: int  #: images that are reconstructed at once, in float32
    #: the first stage on whose latents the network works; None: it works on images
    first_stage: FirstStage | None = None


def run_memory(network: nn.Module, workload: Workload) -> Memory:
    """The peak memory of a training run: of its steps, or of its validation or pictures if these need more."""
    stage, device = workload.first_stage, workload.device
    shape = workload.image_shape if stage is None else stage.latent_shape(workload.image_shape)
    dtype = resolve_precision(workload.precision, device)
    training = training_memory(network, (workload.batch_size, *shape), device, dtype)
    batches = ((workload.val_batch_size, dtype), (workload.num_pictures, torch.float32))
    num_images, largest_dtype = max(batches, key=lambda batch: batch[0] * batch[1].itemsize)
    inference = inference_memory(network, (num_images, *shape), device, largest_dtype)
    moments = [training, inference]
    states, image_bytes = training.states, 0
    if stage is not None:
        decodes = workload.num_pictures > 0
        stage_dtype = torch.float32 if decodes else dtype
        moments.append(first_stage_memory(stage, workload.image_shape, device, stage_dtype, decodes))
        states += moments[-1].states
        # the images beside their latents
        image_bytes = 4 * math.prod(workload.image_shape) * max(workload.batch_size, num_images)
    fullest = max(moments, key=lambda memory: memory.total - memory.states)
    return replace(fullest, states=states, transient=fullest.transient + image_bytes)


def check_memory(network: nn.Module, workload: Workload, free: int | None = None) -> None:
    """Refuse a training that cannot fit before its first step.

    A warning is logged if training would take more than 80 % of what is free, in bytes; by default what the device
    says. Nothing is checked on a device whose free memory is unknown, or for a network that cannot run on tensors
    without data.
    """
    free = free or free_memory(workload.device)
    if free is None:
        return
    try:
        needed = run_memory(network, workload)
    except DiffAEError:  # it would end the first step, too
        raise
    except Exception as error:  # another package's encoder may look at values, which these tensors do not have
        logger.debug("the memory that training takes is unknown: %s", error)
        return
    logger.info("training takes about %.2f GiB of %.2f GiB free", needed.gib, free / GIB)
    amounts = f"about {needed.gib:.2f} GiB are needed on {workload.device}, {free / GIB:.2f} GiB are free"
    if needed.total > free:
        raise MachineError(
            f"not enough memory: {amounts}; lower batch_size, val_batch_size or image_size, set "
            "use_checkpoint, or ask monai-diffae plan (check_memory=false trains nevertheless)"
        )
    if needed.total > 0.8 * free:
        logger.warning("memory may run short: %s; monai-diffae plan proposes what fits", amounts)


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


def _memory(states: int, kept: int, live: _LiveBytes, device: torch.device | str) -> Memory:
    if torch.device(device).type == "cpu":
        resident = live.peak_large + (1 + _CPU_HOLES) * live.peak_small
        overhead = _CPU_LIBRARIES + resident - live.peak
    else:
        overhead = _CUDA_BLOCKS * live.peak
    return Memory(states, kept, live.peak - kept, int(overhead))


def _without_data(network: nn.Module, batch_shape: Sequence[int]) -> nn.Module:
    """A copy of the network, within ``FakeTensorMode``: its parameters have shape, dtype and format, but no data."""
    copies: dict[int, Any] = {}
    for parameter in network.parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype)
        if empty.ndim == len(batch_shape):
            empty = _channels_last(empty)
        copies[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        copies[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    for module in network.modules():  # MONAI's attention keeps its last matrix as an attribute
        copies.update(
            {id(v): torch.empty(v.shape, dtype=v.dtype) for v in vars(module).values() if isinstance(v, Tensor)}
        )
    return copy.deepcopy(network, copies)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last_3d if tensor.ndim == 5 else torch.channels_last)


def _predict(network: nn.Module, x0: Tensor, x_t: Tensor, dtype: torch.dtype) -> Tensor:
    """The network's prediction for a batch without data, in ``dtype``, as a training step computes it."""
    channels = getattr(network, "encoder_in_channels", None) or x0.shape[1]
    seen = x0 if channels == x0.shape[1] else torch.empty(len(x0), channels, *x0.shape[2:])
    timesteps = torch.empty(len(x0))
    with autocast("cpu", dtype):
        output: Tensor = network(_channels_last(x_t), timesteps, _channels_last(seen))
    return output
