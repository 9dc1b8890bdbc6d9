"""Spacings: which of the training's timesteps a run of few steps visits.

Each is a function of the number of steps and of the log-SNR of every timestep (falling), and gives that many different
timesteps, ascending.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

NOISE_LEFT = 0.15
"""What a run of one step would leave of noise, as a share of the signal; one of n steps leaves a share n times smaller.

The jump from there to x0 is of first order, and must not be coarser than the steps before. 10 steps end at 1.5 %: two
grey levels of 8 bits.
"""


def logsnr(steps: int, log_snr: Sequence[float]) -> list[int]:
    """Equal steps of log-SNR from T - 1 to where hardly any noise is left (``NOISE_LEFT``).

    So the noisiest and the cleanest levels get their share, which equal steps of t do not give them. A run of so many
    steps that they would meet at the clean end takes the next timesteps there.

    Example:
        >>> logsnr(5, np.linspace(4, -4, 1000))
        [62, 296, 530, 765, 999]
    """
    falling = np.asarray(log_snr)
    total = len(falling)
    cleanest = min(int(np.searchsorted(-falling, -math.log(steps / NOISE_LEFT))), total - steps)
    wanted = np.linspace(falling[-1], falling[cleanest], steps)[::-1]
    t = np.round(np.interp(-wanted, -falling, np.arange(total))).astype(int)
    apart = np.arange(steps)
    t = np.maximum.accumulate(t - apart) + apart  # no timestep twice ...
    return np.minimum(t, total - steps + apart).tolist()  # ... and none beyond the last


def leading(steps: int, log_snr: Sequence[float]) -> list[int]:
    """0, s, 2s, ...: from the clean end on, as in the paper's code. The noisiest levels are left out."""
    return [i * (len(log_snr) // steps) for i in range(steps)]


def trailing(steps: int, log_snr: Sequence[float]) -> list[int]:
    """..., T - 1 - s, T - 1: from the noisy end on (Lin et al. 2024)."""
    return [round((i + 1) * len(log_snr) / steps) - 1 for i in range(steps)]


def linspace(steps: int, log_snr: Sequence[float]) -> list[int]:
    """From 0 to T - 1, both included."""
    last = len(log_snr) - 1
    return [last] if steps == 1 else [round(i * last / (steps - 1)) for i in range(steps)]


SPACINGS: dict[str, Callable[[int, Sequence[float]], list[int]]] = {
    "logsnr": logsnr,
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
}
