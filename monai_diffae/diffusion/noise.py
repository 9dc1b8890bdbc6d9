"""Noise as a function of a seed and an index, not of a state."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of ``parts``.

    Example:
        >>> seed_of(0, 0, 17) == seed_of(0, 0, 17), seed_of(0, 0, 17) == seed_of(0, 17, 0)
        (True, False)
    """
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def image_noise(shape: tuple[int, ...], seed: int, indices: list[int]) -> torch.Tensor:
    """Standard normal noise (len(indices), *shape), each row a function of (seed, index) alone.

    So an image gets the same noise whatever the batch it comes in.

    Example:
        >>> bool((image_noise((1, 4), 0, [3, 5])[1] == image_noise((1, 4), 0, [5])[0]).all())
        True
    """
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed_of(seed, "noise", i))) for i in indices]
    return torch.stack(rows)
