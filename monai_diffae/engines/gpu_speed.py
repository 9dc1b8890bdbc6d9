"""How fast GPUs train a network, predicted from their specifications: none of them is needed, and nothing is measured.

The roofline model (Williams et al. 2009, doi:10.1145/1498765.1498785): an operation takes as long as its arithmetic at
the GPU's highest rate, or as long as its tensors take to cross the memory bus, whichever is longer. Both rates are
reached in part only. Small networks are limited by the program that starts the operations instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from monai_diffae.engines.precision import Precision, resolve_precision
from monai_diffae.engines.without_data import predict_without_data, without_data

# shares of the specified rates and the time to start an operation: usual values, not measured here
_OF_ARITHMETIC, _OF_BANDWIDTH, _START_S = 0.5, 0.7, 8e-6
# AdamW reads and writes the weights and both moments, and reads the gradients; the average of the weights likewise
_FLOATS_PER_UPDATED_WEIGHT = 10


@dataclass(frozen=True)
class Gpu:
    """A GPU's specifications.

    Attributes:
        tflops: 10^12 operations per second of dense matrix products in this precision, with sums in fp32.
        bandwidth: of its memory, in 10^9 bytes per second.
        memory_gib: in GiB.
        precision: what ``auto`` means there: bf16 where the hardware has it, else fp32.
    """

    tflops: float
    bandwidth: float
    memory_gib: int
    precision: Precision = "bf16"


# from NVIDIA's data sheets; of versions with the same name, the one for servers (SXM)
GPUS = {
    "t4": Gpu(8.1, 320, 16, "fp32"),
    "v100": Gpu(15.7, 900, 32, "fp32"),
    "a10": Gpu(125, 600, 24),
    "a40": Gpu(150, 696, 48),
    "a100": Gpu(312, 2039, 80),
    "l4": Gpu(121, 300, 24),
    "l40s": Gpu(362, 864, 48),
    "h100": Gpu(989, 3350, 80),
    "h200": Gpu(989, 4800, 141),
    "rtx3090": Gpu(71, 936, 24),
    "rtx4090": Gpu(165, 1008, 24),
}


def predicted_images_per_second(network: nn.Module, batch_shape: Sequence[int], gpu: Gpu) -> float:
    """How many images one GPU trains on per second, in eager mode; the truth may be half or twice as much.

    Args:
        network: a :class:`~monai_diffae.networks.DiffusionAutoencoder`, also on the ``meta`` device.
        batch_shape: (B, C, *S) of the images.
        gpu: one of :data:`GPUS`.

    Example:
        >>> from monai_diffae.networks import build_autoencoder
        >>> net = build_autoencoder(2, base_channels=8, channel_mult=(1, 2), z_channels=16, time_embed_channels=8)
        >>> slow, fast = (predicted_images_per_second(net, (64, 1, 64, 64), GPUS[name]) for name in ("t4", "h100"))
        >>> slow < fast
        True
    """
    dtype = resolve_precision(gpu.precision, "cuda")
    with FakeTensorMode():
        step = without_data(network, batch_shape)
        with _Operations() as operations:
            x0, x_t, target = (torch.empty(batch_shape) for _ in range(3))
            loss = (predict_without_data(step, x0, x_t, dtype).float() - target).square().mean()
            loss.backward()
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    update = (0, 4 * _FLOATS_PER_UPDATED_WEIGHT * trained)
    return batch_shape[0] / sum(_seconds(flops, moved, gpu) for flops, moved in (*operations.work, update))


def _seconds(flops: int, moved: int, gpu: Gpu) -> float:
    arithmetic = flops / (_OF_ARITHMETIC * gpu.tflops * 1e12)
    return max(arithmetic, moved / (_OF_BANDWIDTH * gpu.bandwidth * 1e9), _START_S)


class _Operations(TorchDispatchMode):
    """Lists the arithmetic (FLOP) and the bytes that are read and written of each operation that computes something."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not func.is_view and func.namespace != "prim":  # a question about a tensor is no operation
            count = flop_registry.get(func._overloadpacket)
            flops = count(*args, **kwargs, out_val=output) if count else 0
            tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
            self.work.append((flops, sum(tensor.numel() * tensor.element_size() for tensor in tensors)))
        return output
