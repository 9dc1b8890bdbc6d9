"""Read and preprocess scans one after the other; errors are values, so that one bad scan does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from monai_diffae.data.contents import item_hash
from monai_diffae.data.failures import Failure, SkippedCases
from monai_diffae.data.workers import leave_signals_to_parent, worker_errors
from monai_diffae.errors import ScanError, find_diffae_error, one_line

Arrays = dict[str, NDArray[np.float32]]
"""The images ``[C, *S]`` of one item, by key."""


def read_stream(
    data: Sequence[Mapping[str, Any]],
    transform: Callable[[Any], Any],
    keys: tuple[str, ...],
    workers: int = 0,
    ahead: int = 2,
) -> Iterator[Arrays | Exception]:
    """Yield each item's preprocessed images ``[C, *S]``, float32, by key and in order, or the error of a bad item.

    Worker processes read ahead while the caller uses the images. With 0 workers, this process reads. ``ahead`` items
    are read ahead in total, at least 2 per worker. A caller that collects batches needs a whole batch, or the workers
    wait while it processes one.

    Example:
        >>> read = lambda item: {"image": torch.full((1, 2, 2), item["image"])}
        >>> [arrays["image"].shape for arrays in read_stream([{"image": 1.0}, {"image": 2.0}], read, ("image",))]
        [(1, 2, 2), (1, 2, 2)]
    """
    yield from in_order(_PreprocessedItems(data, transform, keys), workers, ahead)


def read_hashed_stream(
    data: Sequence[Mapping[str, Any]],
    transform: Callable[[Any], Any],
    keys: tuple[str, ...],
    workers: int = 0,
    ahead: int = 2,
) -> Iterator[tuple[Arrays | Exception, str]]:
    """Yield what :func:`read_stream` does, each with the hash of the item's files, also of files that cannot be used.

    The files are hashed right after they were read, while they are still in memory.
    """
    yield from in_order(_HashedItems(data, transform, keys), workers, ahead)


def preprocessed(transform: Callable[[Any], Any], item: Mapping[str, Any], keys: tuple[str, ...]) -> Arrays:
    """Preprocess one item: its images ``[C, *S]``, float32, by key."""
    result = transform(dict(item))
    return {key: np.array(plain_tensor(result[key]).numpy(), np.float32) for key in keys}


def plain_tensor(value: Any) -> torch.Tensor:
    """Convert to float32 on the CPU, without MONAI's metadata, which contain paths."""
    tensor = value.as_tensor() if hasattr(value, "as_tensor") else torch.as_tensor(value)
    return tensor.detach().to("cpu", torch.float32).contiguous()


def check_size(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> ScanError | None:
    """Return an error if an image has another size than the images before it, else None."""
    for key, array in arrays.items():
        if array.shape != shapes[key]:
            expected, actual = list(shapes[key]), list(array.shape)
            return ScanError(
                f"{key}: the size is {actual} but others are {expected}; crop, pad or resize in the transform"
            )
    return None


def log_failure(item: Mapping[str, Any], index: int, key: str, error: Exception, skipped: SkippedCases) -> Failure:
    """Log that an item is skipped, see :class:`SkippedCases`, and return its line for ``failures.csv``."""
    image = item.get(key, item.get("image", ""))
    file = image[0] if isinstance(image, (list, tuple)) and image else image
    failure = Failure(str(item.get("id", index)), Path(str(file)).name, one_line(error))
    skipped.log(failure, failure.case_id.rpartition("_")[0] if "slice" in item else None)
    return failure


def in_order(dataset: Dataset[Any], workers: int, ahead: int = 2) -> Iterator[Any]:
    """Yield the items of a dataset in order, with workers that read ahead, see :func:`read_stream`."""
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, collate_fn=_identity,
        prefetch_factor=max(2, -(-ahead // workers)) if workers else None, worker_init_fn=leave_signals_to_parent,
    )  # fmt: skip
    with worker_errors():
        yield from loader


class _PreprocessedItems(Dataset[Any]):
    """Preprocessed items, with errors as values: an exception in a worker would arrive as a traceback and end all."""

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any], keys: tuple[str, ...]
    ) -> None:
        self.data, self.transform, self.keys = data, transform, keys

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self._result(index)

    def _result(self, index: int) -> Arrays | Exception:
        try:
            return preprocessed(self.transform, self.data[index], self.keys)
        except Exception as error:
            known = find_diffae_error(error)
            return known or ScanError(
                f"the preprocessing fails ({one_line(error)[:200]}); omit this case, or check the preprocessing"
            )


class _HashedItems(_PreprocessedItems):
    """Preprocessed items, each with the hash of its files."""

    def __getitem__(self, index: int) -> Any:
        return self._result(index), item_hash(self.data[index])


def _identity(value: Any) -> Any:
    return value
