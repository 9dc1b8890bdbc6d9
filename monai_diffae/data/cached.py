"""A dataset that reads and preprocesses every scan once, and keeps the images in memory or on disk."""

import contextlib
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from monai_diffae.data.atomic import ProcessLock, disk_errors
from monai_diffae.data.fingerprints import digest
from monai_diffae.data.progress import Failure, SkippedCases, check_any_usable, progress
from monai_diffae.data.streamed import Arrays, check_size, log_failure, plain_tensor, preprocessed, read_hashed_stream
from monai_diffae.errors import BusyError, CohortError, DiffAEError, MachineError, ScanError
from monai_diffae.policies import OnBadScan, PathLike, check_choice

Item = dict[str, Any]


@dataclass(eq=False, repr=False)
class CachedCases(Dataset[Item]):
    """Preprocessed cases in memory, or on disk if they do not fit into memory.

    The first use (or :meth:`prepare`) reads every case once. A bad scan is skipped with a warning and listed in
    :attr:`failures`; ``failures_name`` is the file that will list them, for messages. Random transforms get a seed that
    is a function of (seed, epoch, index), so that an item does not depend on the number of workers or the order of the
    items.

    Raises:
        CohortError: (on first use) no scan can be used.
        MachineError: (on first use) the disk is too small for the cache, or a worker died.

    Example:
        >>> read = lambda item: {"image": torch.full((1, 2, 2), item["image"])}
        >>> cases = CachedCases([{"image": 1.0, "id": "a"}], read)
        >>> cases[0]["image"].shape, cases[0]["id"], len(cases)
        (torch.Size([1, 2, 2]), 'a', 1)
    """

    #: items as from :meth:`Case.item() <monai_diffae.data.cases.Case.item>`; ``"id"`` names an item
    data: Sequence[Item]
    transform: Callable[[Any], Any]  #: the deterministic preprocessing, to ``[C, *S]`` under each of ``keys``
    #: the augmentation, a MONAI transform; it gets a mapping with ``keys`` only
    random_transform: Callable[[Any], Any] | None = None
    #: folder for the disk cache, which is deleted at the end, or at the next start after a kill; by default that of the
    #: system's temporary files
    cache_dir: PathLike | None = None
    cache_gib: float = 4.0  #: the largest cache in memory, in GiB; a larger one is on disk
    num_workers: int | None = 0  #: processes that preprocess; 0 or None preprocesses in this process
    seed: int = 0  #: random seed of ``random_transform``
    on_bad_scan: OnBadScan = "skip"  #: or ``"stop"`` to raise the :class:`ScanError` of the first bad scan
    keys: Sequence[str] = ("image",)  #: the entries of the transform's result to keep
    epoch: int = field(default=0, init=False)  #: of plain indices; persistent workers need indices (epoch, index)
    failures: list[Failure] = field(default_factory=list, init=False)
    failures_name: str | None = field(default=None, init=False)
    _contents: list[tuple[str, str]] = field(default_factory=list, init=False)
    _items: list[Item] | None = field(default=None, init=False)
    _stores: "dict[str, ArrayStore]" = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_choice("on_bad_scan", self.on_bad_scan, OnBadScan)

    @property
    def items(self) -> list[Item]:
        """The items that can be used, in order."""
        return self.prepare()._items or [] if self.data else []

    @property
    def contents(self) -> list[tuple[str, str]]:
        """The id of each case and the hash of its scan, taken while it was read; also of cases that cannot be used."""
        return self.prepare()._contents if self.data else []

    def prepare(self) -> "CachedCases":
        """Read and preprocess all cases, if this has not been done, and return the dataset itself."""
        if self._items is not None:
            return self
        if not self.data and not self.failures:
            raise CohortError("there are no cases to read; check the cohort and its splits")
        remove_abandoned_caches(self.cache_dir)
        items: list[Item] = []
        skipped = SkippedCases(self.failures_name)
        for index, (result, content) in enumerate(self._results()):
            self._contents.append((str(self.data[index].get("id", index)), content))
            error = result if isinstance(result, Exception) else self._keep(result)
            if error is None:
                items.append(self.data[index])
            elif (isinstance(error, DiffAEError) and not isinstance(error, ScanError)) or self.on_bad_scan == "stop":
                raise error
            else:
                self.failures.append(log_failure(self.data[index], index, self.keys[0], error, skipped))
        check_any_usable(len(items), self.failures)
        for store in self._stores.values():
            store.close()
        self._items = items
        return self

    def without_augmentation(self) -> "CachedCases":
        """The same dataset without ``random_transform``; both share the cache."""
        plain = copy(self.prepare())
        plain.random_transform = None
        return plain

    def images(self) -> "CachedCases":
        """The dataset whose items hold images: this one; a subclass whose items hold latents returns another."""
        return self

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | tuple[int, int]) -> Item:
        """Return one item: ``keys`` as plain float32 tensors ``[C, *S]``, ``id``, and ``index``, its position."""
        epoch, position = index if isinstance(index, tuple) else (self.epoch, index)
        items = self.items
        position = range(len(items))[position]
        if self._stores:
            arrays = {key: store[position] for key, store in self._stores.items()}
        else:
            arrays = preprocessed(self.transform, items[position], self.keys)
        tensors: Item = {key: torch.from_numpy(array) for key, array in arrays.items()}
        if self.random_transform is not None:
            if hasattr(self.random_transform, "set_random_state"):
                seed_bytes = bytes.fromhex(digest(f"{self.seed}:{epoch}:{position}"))
                self.random_transform.set_random_state(seed=int.from_bytes(seed_bytes[:4], "little"))
            tensors = self.random_transform(tensors)
        plain: Item = {key: plain_tensor(tensors[key]) for key in self.keys}
        return {**plain, "id": str(items[position].get("id", position)), "index": position}

    @property
    def _task(self) -> str:
        """What :meth:`prepare` does with each image, for the line that shows progress."""
        return "reading and preprocessing"

    def _results(self) -> Iterator[tuple[Arrays | Exception, str]]:
        with progress(len(self.data), f"{self._task} {len(self.data)} images") as advance:
            for result in read_hashed_stream(self.data, self.transform, self.keys, self.num_workers or 0):
                advance()
                yield result

    def _keep(self, arrays: Arrays) -> ScanError | None:
        """Store a result, or return an error if its size differs from the first result's."""
        if not self._stores:
            count = len(self.data)
            gib = count * sum(a.nbytes for a in arrays.values()) / 1024**3
            folder = make_cache_folder(self.cache_dir, gib) if gib > self.cache_gib else None
            if folder is not None:
                weakref.finalize(self, remove_cache_folder, folder, os.getpid())
            self._stores = {
                key: ArrayStore(count, a.shape, folder and folder / f"{key}.f32") for key, a in arrays.items()
            }
        error = check_size(arrays, {key: store.shape for key, store in self._stores.items()})
        for key, array in arrays.items() if error is None else ():
            self._stores[key].append(array)
        return error


# -- arrays in memory or on disk ---------------------------------------------------------------------------------------


class ArrayStore:
    """Up to ``count`` float32 arrays of one shape, on disk or in memory: first appended, then read by position."""

    def __init__(self, count: int, shape: tuple[int, ...], path: Path | None) -> None:
        self.shape, self.path, self.filled = shape, path, 0
        self._array = np.empty((count, *shape), np.float32) if path is None else None
        # written, not memory-mapped: a full disk then raises an error and does not kill the process
        self._stream = None if path is None else open(path, "wb")  # noqa: SIM115

    def append(self, array: NDArray[np.float32]) -> None:
        """Add one array."""
        if self._array is not None:
            self._array[self.filled] = array
        elif self._stream is not None:
            with disk_errors("cache_dir"):
                self._stream.write(np.ascontiguousarray(array).tobytes())
        self.filled += 1

    def close(self) -> None:
        """Finish appending; call this before reading."""
        if self._stream is not None:
            with disk_errors("cache_dir"):
                self._stream.close()  # it writes what is still in its buffer
            self._stream = None

    def __getitem__(self, position: int) -> NDArray[np.float32]:
        """Return a copy of one array."""
        if self._array is None:
            self._array = np.memmap(str(self.path), np.float32, "r", shape=(self.filled, *self.shape))
        return np.array(self._array[position])

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker gets the name of the file, not its contents
        return {**self.__dict__, "_stream": None, "_array": None if self.path else self._array}


class Trajectories(Dataset[dict[str, Any]]):
    """Items ``{"trajectory": (L, C, *S), "z_sem": (Z,), "id": case, "index": position}``, float32."""

    def __init__(self, stores: Sequence[ArrayStore], z_sem: Tensor, ids: Sequence[str]) -> None:
        self.stores = list(stores)
        self.z_sem = z_sem.cpu()
        self.ids = list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """Return the item at a position, or at (epoch, position), as a training loader uses it."""
        position = range(len(self))[index[1] if isinstance(index, tuple) else index]
        (*before, store), row = self.stores, position
        for each in before:
            if row < each.filled:
                store = each
                break
            row -= each.filled
        return {
            "trajectory": torch.from_numpy(store[row]),
            "z_sem": self.z_sem[position],
            "id": self.ids[position],
            "index": position,
        }

    def __add__(self, other: "Trajectories") -> "Trajectories":  # type: ignore[override]
        """Both sets of trajectories, one after the other."""
        z_sem = torch.cat([self.z_sem, other.z_sem])
        return Trajectories([*self.stores, *other.stores], z_sem, [*self.ids, *other.ids])


# -- folders on disk ---------------------------------------------------------------------------------------------------

_PREFIX, _LOCK = "diffae-cache-", ".lock"
_held: dict[Path, ProcessLock] = {}  # until the folder is removed; a lock cannot be sent to worker processes


def make_cache_folder(parent: PathLike | None, gib: float) -> Path:
    """Make a folder for a cache of ``gib`` GiB on a disk with room for it; by default among the temporary files."""
    root = Path(tempfile.gettempdir() if parent is None else parent)
    folder = root / f"{_PREFIX}{secrets.token_hex(4)}"
    with disk_errors("cache_dir"):
        root.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=root))
        lock = ProcessLock(hidden / _LOCK)
        lock.acquire()
        hidden.rename(folder)  # it gets this name only once it is locked
    _held[folder] = lock
    free = shutil.disk_usage(folder).free / 1024**3
    if free < gib:
        remove_cache_folder(folder, os.getpid())
        needs = f"the cache needs {gib:.1f} GiB, but {free:.1f} GiB are free"
        raise MachineError(f"cache_dir: {needs}; choose another disk")
    return folder


def remove_cache_folder(folder: Path, owner: int) -> None:
    """Remove a cache, unless this is another process than its owner, such as a worker that ends."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
        if lock := _held.pop(folder, None):
            lock.release()


def remove_abandoned_caches(parent: PathLike | None) -> None:
    """Remove the caches of processes that were killed: they hold the patients' pixels."""
    for folder in Path(tempfile.gettempdir() if parent is None else parent).glob(f"{_PREFIX}*"):
        if folder in _held:
            continue
        # it may belong to another user, or be in use
        with contextlib.suppress(OSError, BusyError), ProcessLock(folder / _LOCK, timeout_s=0):
            shutil.rmtree(folder, ignore_errors=True)
