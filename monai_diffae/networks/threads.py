"""The number of CPU threads: one for small work, all for other work."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Thread

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_SMALL = 2**22  # multiply-adds; on an idle machine, two threads are faster than one from about here on


@contextmanager
def threads_for(work: int, device: torch.device | str) -> Iterator[None]:
    """Compute with one thread if the work is small, else with as many as torch uses.

    Threads wait for each other after each operation, which takes longer than a small operation itself, above all beside
    other programs. The last bits of a result depend on the number of threads, so the number depends on the work alone
    and not on a measured speed. If ``OMP_NUM_THREADS`` is set, as by ``--threads``, it holds for all work. The work is
    counted in multiply-adds: of an evaluation as in :func:`evaluation_work`, or one per weight of an optimiser. Only a
    CPU has threads.

    Example:
        >>> with threads_for(1000, "cpu"):
        ...     torch.get_num_threads()
        1
    """
    threads = torch.get_num_threads()
    is_cpu = torch.device(device).type == "cpu"
    if not is_cpu or threads == 1 or work >= _SMALL or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    _log_once(threads)
    torch.set_num_threads(1)
    # set_num_threads also sets the number for threads that first compute later; another thread sets it back for them.
    other = Thread(target=torch.set_num_threads, args=(threads,))
    other.start()
    other.join()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def evaluation_work(network: nn.Module, images: Tensor) -> int:
    """The size of a network evaluation: multiply-adds of one convolution at the full resolution of images (B, C, *S).

    The convolution has as many input and output channels as the network's first convolution has output channels.
    Coarser levels have fewer voxels but more channels, so their operations are of a similar size.

    Example:
        >>> evaluation_work(nn.Conv2d(1, 16, kernel_size=3), torch.zeros(1, 1, 32, 32))
        2359296
    """
    voxels = math.prod(images.shape[:1] + images.shape[2:])
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            return int(voxels * layer.out_channels**2 * math.prod(layer.kernel_size))
    return _SMALL  # without a convolution, the size is unknown: all threads


@lru_cache
def _log_once(threads: int) -> None:
    logger.debug("small work uses one of %d threads, which is faster; --threads sets one number for all work", threads)
