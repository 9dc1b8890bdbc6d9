"""A dataset that reads and preprocesses every scan once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from monai_diffae.data.array_store import ArrayStore
from monai_diffae.data.cache_folders import make_cache_folder, remove_abandoned_caches, remove_cache_folder
from monai_diffae.data.failures import Failure, SkippedCases
from monai_diffae.data.fingerprints import Fingerprint, fingerprint
from monai_diffae.data.progress import progress
from monai_diffae.data.streamed import (
    Arrays,
    check_size,
    log_failure,
    plain_tensor,
    preprocessed,
    read_hashed_stream,
)
from monai_diffae.errors import CohortError, ConfigError, DiffAEError, ScanError
from monai_diffae.policies import OnBadScan, check_choice

Item = dict[str, Any]


class CachedCases(Dataset[Item]):
    """Preprocessed cases in memory, or on disk if they do not fit into memory.

    The first use (or :meth:`prepare`) reads every case once. A bad scan is skipped with a warning and listed in
    :attr:`failures`; ``failures_name`` is the file that will list them, for messages. Random transforms get a seed that
    is a function of (seed, epoch, index), so that an item does not depend on the number of workers or the order of the
    items.

    Args:
        data: items as from :meth:`Case.item() <monai_diffae.data.cases.Case.item>`; ``"id"`` names an item.
        transform: the deterministic preprocessing, to ``[C, *S]`` under each of ``keys``.
        random_transform: the augmentation, a MONAI transform; it gets a mapping with ``keys`` only.
        cache: ``"memory"`` (on disk if larger than ``cache_gib``), ``"disk"``, or ``"none"``, which checks every scan
            once and then reads it again each time.
        cache_dir: folder for the disk cache, which is deleted at the end, or at the next start after a kill; by default
            the system's temporary folder.
        cache_gib: the largest cache in memory, in GiB.
        num_workers: processes that preprocess; 0 or None preprocesses in this process.
        seed: random seed of ``random_transform``.
        on_bad_scan: ``"skip"``, or ``"stop"`` to raise the :class:`ScanError` of the first bad scan.
        keys: the entries of the transform's result to keep.
        progress: show a bar on a terminal, or log a line elsewhere.
        fingerprints: keep a fingerprint of each image while it is read, in :attr:`fingerprints`, to find twins.

    Raises:
        CohortError: (on first use) no scan can be used.
        MachineError: (on first use) the disk is too small for the cache, or a worker died.

    Example:
        >>> read = lambda item: {"image": torch.full((1, 2, 2), item["image"])}
        >>> cases = CachedCases([{"image": 1.0, "id": "a"}], read)
        >>> cases[0]["image"].shape, cases[0]["id"], len(cases)
        (torch.Size([1, 2, 2]), 'a', 1)
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        random_transform: Callable[[Any], Any] | None = None,
        cache: Literal["memory", "disk", "none"] = "memory",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_gib: float = 4.0,
        num_workers: int | None = 0,
        seed: int = 0,
        on_bad_scan: OnBadScan = "skip",
        keys: Sequence[str] = ("image",),
        progress: bool = True,
        fingerprints: bool = False,
    ) -> None:
        if cache not in ("memory", "disk", "none"):
            raise ConfigError(f"cache: '{cache}' is not one of memory, disk, none")
        check_choice("on_bad_scan", on_bad_scan, OnBadScan)
        self.data = [dict(item) for item in data]
        self.transform, self.random_transform = transform, random_transform
        self.cache, self.cache_dir, self.cache_gib = cache, cache_dir, cache_gib
        self.num_workers, self.seed, self.on_bad_scan = num_workers or 0, seed, on_bad_scan
        self.keys, self.progress, self.epoch = tuple(keys), progress, 0
        self.failures: list[Failure] = []
        self.failures_name: str | None = None
        self.fingerprints: list[Fingerprint] | None = [] if fingerprints else None
        self._contents: list[tuple[str, str]] = []
        self._items: list[Item] | None = None
        self._stores: dict[str, ArrayStore] = {}

    @property
    def items(self) -> list[Item]:
        """The items that can be used, in order."""
        self.prepare()
        return self._items or []

    @property
    def contents(self) -> list[tuple[str, str]]:
        """The id of each case and the hash of its scan, taken while it was read; also of cases that cannot be used."""
        self.prepare()
        return self._contents

    def prepare(self) -> CachedCases:
        """Read and preprocess all cases, if this has not been done, and return the dataset itself."""
        if self._items is not None:
            return self
        if not self.data:
            raise CohortError("there are no cases to read; check the cohort and its splits")
        remove_abandoned_caches(self.cache_dir)
        items: list[Item] = []
        skipped = SkippedCases(self.failures_name)
        for index, (result, content) in enumerate(self._results()):
            self._contents.append((str(self.data[index].get("id", index)), content))
            error = result if isinstance(result, Exception) else self._keep(result)
            if error is None:
                items.append(self.data[index])
                if self.fingerprints is not None and not isinstance(result, Exception):
                    self.fingerprints.append(fingerprint(result[self.keys[0]]))
            elif (isinstance(error, DiffAEError) and not isinstance(error, ScanError)) or self.on_bad_scan == "stop":
                raise error
            else:
                self.failures.append(log_failure(self.data[index], index, self.keys[0], error, skipped))
        if not items:
            first = self.failures[0]
            raise CohortError(f"all {len(self.data)} cases failed, the first is '{first.case_id}': {first.reason}")
        for store in self._stores.values():
            store.close()
        self._items = items
        return self

    def without_augmentation(self) -> CachedCases:
        """The same dataset without ``random_transform``; both share the cache."""
        plain = copy(self.prepare())
        plain.random_transform = None
        return plain

    def images(self) -> CachedCases:
        """The dataset whose items hold images: this one; a subclass whose items hold latents returns another."""
        return self

    def uncached(self) -> CachedCases:
        """The same dataset without ``random_transform`` and without the cache: each access reads the scan."""
        plain = self.without_augmentation()
        plain._stores = {}
        return plain

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for plain integer indices; persistent workers do not see it and need (epoch, index)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | tuple[int, int]) -> Item:
        """Return one item: ``keys`` as plain float32 tensors ``[C, *S]``, ``id``, and ``index``, its position.

        Args:
            index: a position, or (epoch or step, position); the first number is for the augmentation's seed only.
        """
        epoch, position = index if isinstance(index, tuple) else (self.epoch, index)
        items = self.items
        position = range(len(items))[position]
        if self._stores:
            arrays = {key: store[position] for key, store in self._stores.items()}
        else:
            arrays = preprocessed(self.transform, items[position], self.keys)
        tensors: Item = {key: torch.from_numpy(array) for key, array in arrays.items()}
        if self.random_transform is not None:
            _seed(self.random_transform, self.seed, epoch, position)
            tensors = self.random_transform(tensors)
        plain: Item = {key: plain_tensor(tensors[key]) for key in self.keys}
        return {**plain, "id": str(items[position].get("id", position)), "index": position}

    @property
    def _task(self) -> str:
        """What :meth:`prepare` does with each image, for the line that shows progress."""
        return "reading and preprocessing"

    def _results(self) -> Iterator[tuple[Arrays | Exception, str]]:
        count = len(self.data)
        text = f"{self._task} {count} images"
        with progress(count, text) if self.progress else _no_progress() as advance:
            for result in read_hashed_stream(self.data, self.transform, self.keys, self.num_workers):
                advance()
                yield result

    def _keep(self, arrays: Arrays) -> ScanError | None:
        """Store a result, or return an error if its size differs from the first result's."""
        if self.cache == "none":
            return None
        if not self._stores:
            count = len(self.data)
            gib = count * sum(a.nbytes for a in arrays.values()) / 1024**3
            on_disk = self.cache == "disk" or gib > self.cache_gib
            folder = make_cache_folder(self.cache_dir, gib) if on_disk else None
            if folder is not None:
                weakref.finalize(self, remove_cache_folder, folder, os.getpid())
            self._stores = {
                key: ArrayStore(count, a.shape, folder and folder / f"{key}.f32") for key, a in arrays.items()
            }
        error = check_size(arrays, {key: store.shape for key, store in self._stores.items()})
        if error is not None:
            return error
        for key, array in arrays.items():
            self._stores[key].append(array)
        return None


def _seed(transform: Any, seed: int, epoch: int, index: int) -> None:
    if hasattr(transform, "set_random_state"):
        digest = hashlib.sha256(f"{seed}:{epoch}:{index}".encode()).digest()
        transform.set_random_state(seed=int.from_bytes(digest[:4], "little"))


@contextlib.contextmanager
def _no_progress() -> Iterator[Callable[[], None]]:
    yield lambda: None
