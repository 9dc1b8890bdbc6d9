"""How many threads of the CPU a command computes with."""

from __future__ import annotations

import os

from monai_diffae.errors import ConfigError


def set_threads(number: int) -> None:
    """Compute with this many threads, also in processes that this one starts.

    It must be called before torch is loaded.

    Raises:
        ConfigError: the number is below 1.

    Example:
        >>> set_threads(0)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: --threads: 0 is below 1; give at least 1, or omit it
    """
    if number < 1:
        raise ConfigError(f"--threads: {number} is below 1; give at least 1, or omit it")
    os.environ["OMP_NUM_THREADS"] = str(number)
