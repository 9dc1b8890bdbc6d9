"""Weights that a program sets from outside, between two runs of a trainer, as clients of federated training do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


class OutsideWeights:
    """Notices that the weights of a network were set since they were last remembered.

    Two signs are compared, because each one misses a case. torch increases a weight's version number whenever a value
    is written to it, even the same value, but not if it is written through ``.data``. A checksum of the values notices
    every way of writing, but not a write of the same value. The network is the trained one, not its DDP wrapper.

    A program may also give the network its own weights, as it got them from ``state_dict``: on a CPU these share its
    memory. They can be loaded, and keep their values while the network is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        network.register_load_state_dict_pre_hook(_leave_memory_of)
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


def _leave_memory_of(network: nn.Module, given: Mapping[str, torch.Tensor], prefix: str, *_: object) -> None:
    """Move weights of the network to new memory where the weights to load are in the same memory."""
    for name, weight in network.named_parameters():
        other = given.get(prefix + name)
        if isinstance(other, torch.Tensor) and other.device == weight.device and _share_memory(other, weight):
            weight.data = weight.data.clone()


def _share_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
