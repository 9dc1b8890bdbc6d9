"""Read and preprocess scans one after the other; errors are values, so that one bad scan does not stop the others."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from monai_diffae.data.atomic import PartStore
from monai_diffae.data.progress import Failure, SkippedCases, progress
from monai_diffae.data.scan_states import item_hash
from monai_diffae.errors import MachineError, ScanError, counted, find_diffae_error, one_line

Arrays = dict[str, NDArray[np.float32]]
"""The images ``[C, *S]`` of one item, by key."""
Items = Sequence[Mapping[str, Any]]
Transform = Callable[[Any], Any]


def read_stream(
    data: Items, transform: Transform, keys: Sequence[str], workers: int = 0, ahead: int = 2
) -> Iterator[Arrays | Exception]:
    """Yield each item's images ``[C, *S]`` by key, or its error, in order; workers read ``ahead`` items in total."""
    return in_order(data, partial(_preprocessed_or_error, transform, keys), workers, ahead)


def read_hashed_stream(
    data: Items, transform: Transform, keys: Sequence[str], workers: int = 0, ahead: int = 2
) -> Iterator[tuple[Arrays | Exception, str]]:
    """Yield what :func:`read_stream` does, each with the hash of the item's files, also of bad items."""
    return in_order(data, partial(_with_hash, transform, keys), workers, ahead)


def in_order(items: Sequence[Any], function: Callable[[Any], Any], workers: int, ahead: int = 2) -> Iterator[Any]:
    """Yield a function of each item, in order, with workers that compute ahead, see :func:`read_stream`."""
    loader = DataLoader(
        _Mapped(items, function),
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        prefetch_factor=max(2, -(-ahead // workers)) if workers else None,
        worker_init_fn=leave_signals_to_parent,
    )
    with worker_errors():
        yield from loader


_SAVE_INTERVAL_S = 5.0


def resumed(
    items: Mapping[str, Any],
    function: Callable[[Any], dict[str, Any]],
    store: PartStore | None,
    workers: int,
    task: str,
    noun: str,
) -> dict[str, dict[Any, Any]]:
    """The row that a function makes of each item, by id, with a progress bar; a store keeps rows for the next call."""
    saved: list[dict[Any, Any]] = [] if store is None else store.read().to_dict("records")
    rows = {str(row["id"]): row for row in saved}
    missing = [id for id in items if id not in rows]
    unsaved, saved_at = [], time.monotonic()
    try:
        with progress(len(missing), f"{task} {counted(len(missing), noun)}") as advance:
            for id, row in zip(missing, in_order([items[id] for id in missing], function, workers), strict=True):
                rows[id] = row
                unsaved.append({"id": id, **row})
                if store is not None and time.monotonic() - saved_at > _SAVE_INTERVAL_S:
                    store.append(pd.DataFrame(unsaved))
                    unsaved, saved_at = [], time.monotonic()
                advance()
    finally:
        if store is not None:
            store.append(pd.DataFrame(unsaved))
    return rows


@dataclass(frozen=True)
class _Mapped(Dataset[Any]):
    items: Sequence[Any]
    function: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def _identity(value: Any) -> Any:
    return value


def _preprocessed_or_error(transform: Transform, keys: Sequence[str], item: Mapping[str, Any]) -> Arrays | Exception:
    """The images, or the error as a value: an exception in a worker would arrive as a traceback and end all."""
    try:
        return preprocessed(transform, item, keys)
    except Exception as error:
        return find_diffae_error(error) or ScanError(
            f"the preprocessing fails ({one_line(error)[:200]}); omit this case, or check the preprocessing"
        )


def _with_hash(transform: Transform, keys: Sequence[str], item: Mapping[str, Any]) -> tuple[Any, str]:
    # in this order, as the files are still in memory after they were read
    return _preprocessed_or_error(transform, keys, item), item_hash(item)


def preprocessed(transform: Transform, item: Mapping[str, Any], keys: Sequence[str]) -> Arrays:
    """Preprocess one item: its images ``[C, *S]``, float32, by key."""
    result = transform(dict(item))
    return {key: np.array(plain_tensor(result[key]).numpy(), np.float32) for key in keys}


def plain_tensor(value: Any) -> torch.Tensor:
    """Convert to float32 on the CPU, without MONAI's metadata, which contain paths."""
    tensor = value.as_tensor() if hasattr(value, "as_tensor") else torch.as_tensor(value)
    return tensor.detach().to("cpu", torch.float32).contiguous()


def check_size(sizes: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]]) -> ScanError | None:
    """Return an error if an image has another size than the images before it, else None."""
    for key, size in sizes.items():
        if size != others[key]:
            text = f"{list(size)} but others are {list(others[key])}"
            return ScanError(f"{key}: the size is {text}; crop, pad or resize in the transform")
    return None


def log_failure(item: Mapping[str, Any], index: int, key: str, error: Exception, skipped: SkippedCases) -> Failure:
    """Log that an item is skipped, see :class:`SkippedCases`, and return its line for ``failures.csv``."""
    image = item.get(key, item.get("image", ""))
    file = image[0] if isinstance(image, (list, tuple)) and image else image
    failure = Failure(str(item.get("id", index)), Path(str(file)).name, one_line(error))
    skipped.log(failure, failure.case_id.rpartition("_")[0] if "slice" in item else None)
    return failure


# -- worker processes --------------------------------------------------------------------------------------------------


def leave_signals_to_parent(_worker: int = 0) -> None:
    """Make a worker process ignore Ctrl-C, and SIGTERM unless its parent sends it: a ``worker_init_fn``."""
    # Slurm, systemd and containers signal all processes of a job. A worker that ended then would take the training
    # down before it has saved its last steps; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS and Windows do not tell who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    """End with the parent, also if it was killed: torch's worker then waits forever until somebody reads its images."""
    while os.getppid() == parent:
        sent = signal.sigtimedwait({signal.SIGTERM}, 1)
        if sent is not None and sent.si_pid == parent:
            break
    os._exit(0)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise the death of a worker process as an error of the machine."""
    try:
        yield
    except RuntimeError as error:
        if dead := dead_worker(error):
            raise dead from error
        raise


def dead_worker(error: BaseException) -> MachineError | None:
    """The error of the machine, if torch says that a worker process died; else None."""
    if not (isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")):
        return None
    return MachineError(
        "a worker process that reads scans was killed, usually because memory ran out; use fewer workers, then the "
        "same command resumes"
    )
