"""Weights that a program sets from outside, between two runs of a trainer, as clients of federated training do."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


class OutsideWeights:
    """Notices that the weights of a network were set since they were last remembered.

    Two signs are compared, because each one misses a case. torch increases a weight's version number whenever a value
    is written to it, even the same value, but not if it is written through ``.data``. A checksum of the values notices
    every way of writing, but not a write of the same value. The network is the trained one, not its DDP wrapper.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.remember()

    def remember(self) -> None:
        """From now on, compare with the current weights."""
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
