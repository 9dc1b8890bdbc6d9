"""Spacings: which of the training timesteps a run of few steps visits.

Each spacing is a function of the number of steps and of the log-SNR of all training timesteps, which falls with t. It
returns as many distinct timesteps as there are steps, in ascending order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

NOISE_LEFT = 0.15
"""Noise-to-signal ratio sigma / alpha at the cleanest level of a run of one step; with n steps it is n times smaller.

The last step, from this level to x0, is first order, so it must not be coarser than the steps before it. With 10 steps
the ratio is 1.5 %, about two grey levels of an 8-bit image.
"""


def logsnr(steps: int, log_snr: Sequence[float]) -> list[int]:
    """Equal steps of log-SNR, from T - 1 to a level with hardly any noise (:data:`NOISE_LEFT`).

    Compared with equal steps of t, more steps are spent on the noisiest and the cleanest levels. Where the steps at the
    clean end would be smaller than one timestep, consecutive timesteps are used.

    Example:
        >>> logsnr(5, np.linspace(4, -4, 1000))
        [62, 296, 530, 765, 999]
    """
    falling = np.asarray(log_snr)
    total = len(falling)
    cleanest = min(int(np.searchsorted(-falling, -math.log(steps / NOISE_LEFT))), total - steps)
    targets = np.linspace(falling[-1], falling[cleanest], steps)[::-1]
    t = np.round(np.interp(-targets, -falling, np.arange(total))).astype(int)
    index = np.arange(steps)
    t = np.maximum.accumulate(t - index) + index  # no timestep occurs twice ...
    return np.minimum(t, total - steps + index).tolist()  # ... and none is above T - 1


def leading(steps: int, log_snr: Sequence[float]) -> list[int]:
    """0, s, 2s, ...: equal steps of t from the clean end (the paper's code), which leave out the noisiest levels."""
    return [i * (len(log_snr) // steps) for i in range(steps)]


def trailing(steps: int, log_snr: Sequence[float]) -> list[int]:
    """..., T - 1 - s, T - 1: equal steps of t that end at the noisiest level (Lin et al. 2024)."""
    return [round((i + 1) * len(log_snr) / steps) - 1 for i in range(steps)]


def linspace(steps: int, log_snr: Sequence[float]) -> list[int]:
    """0, ..., T - 1: equal steps of t that include both ends."""
    last = len(log_snr) - 1
    return [last] if steps == 1 else [round(i * last / (steps - 1)) for i in range(steps)]


SPACINGS: dict[str, Callable[[int, Sequence[float]], list[int]]] = {
    "logsnr": logsnr,
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
}
