"""A dataset of trajectories: images at some noise levels between x_T and x0, with their z_sem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from monai_diffae.data.array_store import ArrayStore


class Trajectories(Dataset[dict[str, Any]]):
    """Items ``{"trajectory": (L, C, *S), "z_sem": (Z,), "id": case, "index": position}``, float32.

    Example:
        >>> store = ArrayStore(1, (2, 1, 4, 4), None)
        >>> store.append(np.zeros((2, 1, 4, 4), np.float32))
        >>> item = Trajectories(store, torch.zeros(1, 3), ["case-1"])[0]
        >>> item["trajectory"].shape, item["z_sem"].shape, item["id"]
        (torch.Size([2, 1, 4, 4]), torch.Size([3]), 'case-1')
    """

    def __init__(self, store: ArrayStore | JoinedStores, z_sem: Tensor, ids: Sequence[str]) -> None:
        self.store = store
        self.z_sem = z_sem.cpu()
        self.ids = list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """Return the item at a position, or at (epoch, position), as a training loader uses it."""
        position = range(len(self))[index[1] if isinstance(index, tuple) else index]
        return {
            "trajectory": torch.from_numpy(self.store[position]), "z_sem": self.z_sem[position],
            "id": self.ids[position], "index": position,
        }  # fmt: skip

    def __add__(self, other: Trajectories) -> Trajectories:  # type: ignore[override]
        """Both sets of trajectories, one after the other."""
        z_sem = torch.cat([self.z_sem, other.z_sem])
        return Trajectories(JoinedStores(self.store, other.store), z_sem, [*self.ids, *other.ids])


class JoinedStores:
    """Two stores that are read as one, the first one first."""

    def __init__(self, first: ArrayStore | JoinedStores, second: ArrayStore | JoinedStores) -> None:
        self.first, self.second = first, second

    @property
    def filled(self) -> int:
        """The number of arrays."""
        return self.first.filled + self.second.filled

    def __getitem__(self, position: int) -> NDArray[np.float32]:
        """Return a copy of one array."""
        count = self.first.filled
        return self.first[position] if position < count else self.second[position - count]
