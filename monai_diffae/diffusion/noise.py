"""Noise that depends on a seed and an index only, not on a generator's state."""

from __future__ import annotations

import hashlib

from monai_diffae.lazy import on_first_use

with on_first_use:
    import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed, computed from ``parts`` by hashing."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def image_noise(shape: tuple[int, ...], seed: int, indices: list[int]) -> torch.Tensor:
    """Standard normal noise (len(indices), *shape); each row depends on ``seed`` and its index only.

    So an image gets the same noise in every batch.
    """
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed_of(seed, "noise", i))) for i in indices]
    return torch.stack(rows)
