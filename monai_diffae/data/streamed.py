"""Scans read and preprocessed one after the other; what is wrong with one is a value, not the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from monai_diffae.data.failures import Failure
from monai_diffae.errors import MachineError, ScanError, find_diffae_error, one_line

logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[np.float32]]


def read_in_turn(
    data: Sequence[Mapping[str, Any]],
    transform: Callable[[Any], Any],
    keys: tuple[str, ...],
    num_workers: int = 0,
    ahead: int = 2,
) -> Iterator[Arrays | Exception]:
    """Each item's images ``[C, *S]``, float32, by key, in order; or what is wrong with it.

    Worker processes read ahead, while the caller works on what it has been given.

    Args:
        data: items as from :meth:`Case.item() <monai_diffae.data.cases.Case.item>`.
        transform: the preprocessing.
        keys: what is kept of its result.
        num_workers: processes; 0 reads in this one.
        ahead: how many items they read ahead, together and at least 2 each; a caller that takes them by batches needs
            a batch, or they wait while it works on one.

    Raises:
        MachineError: a worker died.

    Example:
        >>> read = lambda item: {"image": torch.full((1, 2, 2), item["image"])}
        >>> [arrays["image"].shape for arrays in read_in_turn([{"image": 1.0}, {"image": 2.0}], read, ("image",))]
        [(1, 2, 2), (1, 2, 2)]
    """
    loader = DataLoader(
        _Reading(data, transform, keys), batch_size=None, num_workers=num_workers, collate_fn=_same,
        prefetch_factor=max(2, -(-ahead // num_workers)) if num_workers else None,
    )  # fmt: skip
    results = iter(loader)
    for _ in data:
        try:
            result = next(results)
        except RuntimeError as error:  # torch says so when a worker is killed, mostly for want of memory
            raise MachineError(f"a worker died while reading ({one_line(error)}); use fewer num_workers") from error
        yield result


def preprocessed(transform: Callable[[Any], Any], item: Mapping[str, Any], keys: tuple[str, ...]) -> Arrays:
    """One item's images ``[C, *S]``, float32, by key."""
    result = transform(dict(item))
    return {key: np.array(plain_tensor(result[key]).numpy(), np.float32) for key in keys}


def plain_tensor(value: Any) -> torch.Tensor:
    """float32 on the CPU, without MONAI's meta data, which hold paths."""
    tensor = value.as_tensor() if hasattr(value, "as_tensor") else torch.as_tensor(value)
    return tensor.detach().to("cpu", torch.float32).contiguous()


def check_size(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> ScanError | None:
    """What is wrong where an image has another size than those before it."""
    for key, array in arrays.items():
        if array.shape != shapes[key]:
            expected, found = list(shapes[key]), list(array.shape)
            return ScanError(
                f"{key}: the size is {found} where others are {expected}; crop, pad or resize in the transform"
            )
    return None


def failure_of(item: Mapping[str, Any], index: int, key: str, error: Exception) -> Failure:
    """What goes into ``failures.csv`` for an item, and a warning of it."""
    image = item.get(key, item.get("image", ""))
    file = image[0] if isinstance(image, (list, tuple)) and image else image
    failure = Failure(str(item.get("id", index)), Path(str(file)).name, one_line(error))
    logger.warning("case %s left out: %s", failure.case_id, failure.reason)
    return failure


class _Reading(Dataset[Any]):
    """Errors as values: an exception in a worker would arrive as a traceback that stops all."""

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any], keys: tuple[str, ...]
    ) -> None:
        self.data, self.transform, self.keys = data, transform, keys

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Arrays | Exception:
        try:
            return preprocessed(self.transform, self.data[index], self.keys)
        except Exception as error:
            return find_diffae_error(error) or ScanError(one_line(error)[:200])


def _same(value: Any) -> Any:
    return value
