"""Weights that a program sets from outside, between two runs of a trainer, as clients of federated training do."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


class OutsideWeights:
    """Notices that the weights of a network were set since they were last remembered.

    Two signs are compared, because each one alone misses a case: numbers that torch increases when a value is written
    to a weight (even if it is the same value; but not if it is written through ``.data``), and a checksum of the values
    (which notices every way, but not the same value).

    Args:
        network: the network that is trained (not its DDP wrapper).

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> weights = OutsideWeights(layer)
        >>> weights.were_set()
        False
        >>> layer.weight.data = torch.ones(2, 2)
        >>> weights.were_set()
        True
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.remember()

    def remember(self) -> None:
        """Compare with the weights of now from here on."""
        self._versions, self._checksum = self._current_versions(), self._current_checksum()

    def were_set(self) -> bool:
        """Whether a weight was written since :meth:`remember`; this reads all weights."""
        return self._versions != self._current_versions() or self._checksum != self._current_checksum()

    def _current_versions(self) -> list[int]:
        return [weight._version for weight in self._network.parameters()]

    def _current_checksum(self) -> str:
        digest = hashlib.sha256()
        for weight in self._network.parameters():  # in the order of their indices, whatever the memory format is
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
