"""Preprocessed scans on disk: each scan is read once, whatever the number of processes, restarts and commands."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch.utils.data import Dataset

from monai_diffae.data.atomic import PartFolder, check_space, scratch_folder
from monai_diffae.data.fingerprints import digest, json_digest
from monai_diffae.data.progress import Failure, SkippedCases, check_any_usable, progress
from monai_diffae.data.scan_states import item_states
from monai_diffae.data.streamed import (
    Arrays,
    Items,
    Transform,
    check_size,
    log_failure,
    plain_tensor,
    preprocessed,
    read_hashed_stream,
)
from monai_diffae.errors import CohortError, DiffAEError, MachineError, ScanError, counted
from monai_diffae.policies import OnBadScan, PathLike, check_choice

Item = dict[str, Any]

_PART_BYTES = 2**26
_POLL_S = 1.0


class _Image(NamedTuple):
    offset: int  # in bytes
    shape: tuple[int, ...]
    checksum: int


class _Row(NamedTuple):
    part: str  # the file's name
    content: str  # hash of the scan's files
    reason: str | None  # why the scan cannot be used
    images: dict[str, _Image]


class ScanCache(PartFolder):
    """Images of preprocessed scans, which any number of processes write, share and read.

    A scan is known by its id, the slice, and names, sizes and times of its files: one that changes is read again. Each
    part is a safetensors file, written every 10 s or 64 MiB; its metadata say why scans could not be used.
    Images are read from the file, so that processes share them in the system's memory for files, and compared with a
    checksum at their first use. :meth:`stream` tries failed scans again.

    Args:
        folder: the folder, which the first part creates.
        made_from: everything that the images depend on besides the scans, as values for JSON by their names.
        keys: the names of the images.
        process: number of this process, for the names of its parts.
        replace: delete images that were made from something else; if not, they are refused.
        save_every_s: seconds between parts.

    Raises:
        ConfigError: the folder holds images of another preprocessing.
        MachineError: a part is damaged.

    Example:
        >>> import tempfile
        >>> from monai_diffae.data.scan_states import item_states
        >>> read = lambda item: {"image": np.full((1, 2, 2), item["image"], np.float32)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache, items = ScanCache(Path(folder), {}), [{"image": 3, "id": "a"}]
        ...     _ = list(cache.stream(items, item_states(items), read))
        ...     ScanCache(Path(folder), {}).images(item_states(items)[0])["image"].mean()
        np.float32(3.0)
    """

    suffix = ".safetensors"
    content = "scans that were preprocessed otherwise, or by another version"

    def __init__(
        self,
        folder: Path,
        made_from: Mapping[str, Any],
        keys: Sequence[str] = ("image",),
        *,
        process: int = 0,
        replace: bool = False,
        save_every_s: float = 10.0,
    ) -> None:
        super().__init__(folder, {**made_from, "images": sorted(keys)}, process=process, replace=replace)
        self.keys, self.save_every_s = keys, save_every_s
        self._rows: dict[str, _Row] = {}  # by the state of a scan
        self._read: set[str] = set()  # names of parts
        self._checked: set[tuple[str, str]] = set()  # images
        self._unsaved: dict[str, tuple[Arrays, str, str | None]] = {}
        self._unsaved_bytes = 0
        self._saved_at = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        """Look for the parts that other processes have written."""
        for part in self._parts():
            if part.name not in self._read:
                self._read_part(part)

    def is_usable(self, state: str) -> bool:
        """Whether the images of a scan are here."""
        return state in self._rows and self._rows[state].reason is None

    def content_of(self, state: str) -> str:
        """The hash of a scan's files."""
        return self._rows[state].content

    def reason(self, state: str) -> str | None:
        """Why a scan cannot be used; None: it can be."""
        return self._rows[state].reason

    def shapes(self, state: str) -> dict[str, tuple[int, ...]]:
        """The shapes of a scan's images."""
        return {name: image.shape for name, image in self._rows[state].images.items()}

    def images(self, state: str) -> Arrays:
        """Read a scan's images ``[C, *S]``, float32, by name."""
        row = self._rows[state]
        return {name: self._image(row.part, (state, name), image) for name, image in row.images.items()}

    def stream(
        self,
        items: Items,
        states: Sequence[str],
        transform: Transform,
        workers: int = 0,
        ahead: int = 2,
        finish: Callable[[Arrays], Arrays] | None = None,
    ) -> Iterator[tuple[Arrays | Exception, str]]:
        """Yield each item's images or error, and its hash, in order; scans that are not here are read and kept.

        Args:
            items: items of cases.
            states: their :func:`~monai_diffae.data.scan_states.item_states`.
            transform: the preprocessing.
            workers: processes that read scans.
            ahead: items that they read ahead in total.
            finish: what this process does with the images of a scan before they are kept.
        """
        are_here = [*map(self.is_usable, states)]
        missing = [item for item, is_here in zip(items, are_here, strict=True) if not is_here]
        read = read_hashed_stream(missing, transform, self.keys, workers, ahead)
        is_first = True
        try:
            for state, is_here in zip(states, are_here, strict=True):
                if is_here:
                    yield self.images(state), self.content_of(state)
                    continue
                result, content = next(read)
                if isinstance(result, dict):
                    result = result if finish is None else finish(result)
                    if is_first:
                        check_space(self.folder, len(missing) * sum(image.nbytes for image in result.values()))
                        is_first = False
                    self._add(state, result, content, None)
                elif isinstance(result, ScanError):
                    self._add(state, {}, content, str(result))
                yield result, content
        finally:
            self._save()

    def wait_for(self, states: Sequence[str], patience_s: float = 3600.0) -> None:
        """Wait until other processes have read all scans; they get ``patience_s`` for each part."""
        last, since = -1, time.monotonic()
        while num_missing := sum(state not in self._rows for state in states):
            if num_missing != last:
                last, since = num_missing, time.monotonic()
            elif time.monotonic() - since > patience_s:
                raise MachineError(
                    f"{self.folder.name}: {counted(num_missing, 'scan')} were not read by other processes; let all "
                    "processes see this folder, and run the command again to resume"
                )
            time.sleep(_POLL_S)
            self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unsaved": {}}  # a worker that is spawned writes nothing

    def _add(self, state: str, images: Arrays, content: str, reason: str | None) -> None:
        if reason is not None and state in self._rows and self._rows[state].reason == reason:
            return  # it failed before, too
        self._unsaved[state] = images, content, reason
        self._unsaved_bytes += sum(image.nbytes for image in images.values())
        if self._unsaved_bytes > _PART_BYTES or time.monotonic() - self._saved_at > self.save_every_s:
            self._save()

    def _save(self) -> None:
        if self._unsaved:
            tensors: dict[str, NDArray[np.float32]] = {}
            rows: dict[str, Any] = {}
            for state, (images, content, reason) in self._unsaved.items():
                rows[state] = content, reason, {name: zlib.crc32(image.data) for name, image in images.items()}
                tensors |= {f"{state}/{name}": image for name, image in images.items()}
            metadata = {"scans": json.dumps(rows), "made_from": json_digest(self._key)}
            part = save(tensors, metadata)  # save_file writes files that only this user can read
            name = self._add_part(lambda path: path.write_bytes(part))
            self._read_part(self.folder / name)
            self._unsaved.clear()
        self._unsaved_bytes = 0
        self._saved_at = time.monotonic()

    def _read_part(self, part: Path) -> None:
        for state, row in self._load(part).items():
            known = self._rows.get(state)  # of several: a usable one, then the first, as in all processes
            if known is None or (row.reason is not None, row.part) < (known.reason is not None, known.part):
                self._rows[state] = row
        self._read.add(part.name)

    def _load(self, part: Path) -> dict[str, _Row]:
        """The rows of a part, from the header of its file."""
        try:
            with part.open("rb") as stream:
                start = 8 + (length := int.from_bytes(stream.read(8), "little"))
                header = json.loads(stream.read(min(length, part.stat().st_size)))
            metadata = header.pop("__metadata__")
            scans, made_from = json.loads(metadata["scans"]), metadata["made_from"]
            ends = [start + each["data_offsets"][1] for each in header.values()]
            if max(ends, default=start) != part.stat().st_size:
                raise self._damaged(part)
            rows = {}
            for state, (content, reason, checksums) in scans.items():
                places = {name: header[f"{state}/{name}"] for name in checksums}
                images = {
                    name: _Image(start + place["data_offsets"][0], tuple(place["shape"]), checksums[name])
                    for name, place in places.items()
                }
                rows[state] = _Row(part.name, content, reason, images)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(part) from error
        if made_from != json_digest(self._key):  # two processes began at once
            raise self._refused()
        return rows

    def _image(self, part: str, name: tuple[str, str], image: _Image) -> NDArray[np.float32]:
        file = self.folder / part
        try:
            flat = np.fromfile(file, np.float32, math.prod(image.shape), offset=image.offset)
        except OSError as error:
            raise self._damaged(file) from error
        if name not in self._checked:
            if zlib.crc32(flat.data) != image.checksum:
                raise self._damaged(file)
            self._checked.add(name)
        return flat.reshape(image.shape)


def is_own_cache(folder: PathLike, output_dir: PathLike | None) -> bool:
    """Whether a cache is ``output_dir/cache``, which ends with the run; other folders are shared."""
    return output_dir is not None and Path(folder).resolve() == (Path(output_dir) / "cache").resolve()


def remove_cache(folder: PathLike, output_dir: PathLike) -> None:
    """Delete the :class:`ScanCache` of a run that is complete, see :func:`is_own_cache`, and no other files."""
    if is_own_cache(folder, output_dir):
        ScanCache(Path(folder), {}, replace=True)


# -- the dataset of trainings and commands -----------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class CachedCases(Dataset[Item]):
    """Preprocessed cases, kept in files that all processes and later runs read.

    The first use (or :meth:`prepare`) reads every case once, unless it is in ``cache_dir`` already. A bad scan is
    skipped with a warning and listed in :attr:`failures`; ``failures_name`` is the file that will list them, for
    messages. Random transforms get a seed that is a function of (seed, epoch, index), so that an item does not depend
    on the number of workers or the order of the items.

    Raises:
        CohortError: (on first use) no scan can be used.
        ConfigError: (on first use) ``cache_dir`` holds images of another preprocessing.
        MachineError: (on first use) the disk is too small, a file of the cache is damaged, or a worker died.

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
    #: with ``made_from``: folder of a :class:`~monai_diffae.data.cached.ScanCache`, which is kept; without: where a
    #: folder is made that is deleted at the end, by default among the system's temporary files
    cache_dir: PathLike | None = None
    #: what the images in ``cache_dir`` depend on besides the scans, as values for JSON by their names
    made_from: Mapping[str, Any] | None = None
    output_dir: PathLike | None = None  #: its ``cache`` is the run's own: one of another preprocessing is replaced
    num_workers: int | None = 0  #: processes that preprocess; 0 or None preprocesses in this process
    rank: int = 0  #: number of this process among those that share the reading
    world_size: int = 1  #: number of these processes; each has to call :meth:`prepare`
    seed: int = 0  #: random seed of ``random_transform``
    on_bad_scan: OnBadScan = "skip"  #: or ``"stop"`` to raise the :class:`ScanError` of the first bad scan
    keys: Sequence[str] = ("image",)  #: the entries of the transform's result to keep
    cache_gib: float | None = None  #: without effect, for configurations of earlier versions
    epoch: int = field(default=0, init=False)  #: of plain indices; persistent workers need indices (epoch, index)
    failures: list[Failure] = field(default_factory=list, init=False)
    failures_name: str | None = field(default=None, init=False)
    _contents: list[tuple[str, str]] = field(default_factory=list, init=False)
    _items: list[Item] | None = field(default=None, init=False)
    _states: list[str] = field(default_factory=list, init=False)  # of the items that can be used
    _cache: ScanCache | None = field(default=None, init=False)

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

    def prepare(self) -> CachedCases:
        """Read and preprocess all cases, if this has not been done, and return the dataset itself."""
        if self._items is not None:
            return self
        if not self.data and not self.failures:
            raise CohortError("there are no cases to read; check the cohort and its splits")
        states, skipped = item_states(self.data), SkippedCases(self.failures_name)
        cache, told = self._fill(states, skipped)
        if self.world_size > 1:
            cache.wait_for(states)
            self._wait_for_others()  # another process may have tried failed scans again
            cache.refresh()
        items: list[Item] = []
        shapes: dict[str, tuple[int, ...]] = {}
        for index, (item, state) in enumerate(zip(self.data, states, strict=True)):
            self._contents.append((str(item.get("id", index)), cache.content_of(state)))
            reason = cache.reason(state)
            shapes = shapes or cache.shapes(state)
            error = check_size(cache.shapes(state), shapes) if reason is None else ScanError(reason)
            if error is None:
                items.append(item)
                self._states.append(state)
            elif self.on_bad_scan == "stop":
                raise error
            else:
                failure = told.get(index) or log_failure(item, index, self.keys[0], error, skipped)
                self.failures.append(failure)
        check_any_usable(len(items), self.failures)
        self._items, self._cache = items, cache
        return self

    def fill_cache(self) -> ScanCache:
        """Read this process's share of the scans that the cache lacks, without waiting for others."""
        return self._fill(item_states(self.data), SkippedCases(self.failures_name))[0]

    def without_augmentation(self) -> CachedCases:
        """The same dataset without ``random_transform``; both share the cache."""
        plain = copy(self.prepare())
        plain.random_transform = None
        return plain

    def images(self) -> CachedCases:
        """The dataset whose items hold images: this one; a subclass whose items hold latents returns another."""
        return self

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | tuple[int, int]) -> Item:
        """Return one item: ``keys`` as plain float32 tensors ``[C, *S]``, ``id``, and ``index``, its position."""
        epoch, position = index if isinstance(index, tuple) else (self.epoch, index)
        items = self.items
        position = range(len(items))[position]
        if self._cache is not None:
            arrays = self._cache.images(self._states[position])
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

    @property
    def _made_from(self) -> Mapping[str, Any]:
        """What the images that are kept depend on besides the scans."""
        return self.made_from or {}

    def _finished(self, arrays: Arrays) -> Arrays:
        """What this process does with the images of a scan before they are kept."""
        return arrays

    def _wait_for_others(self) -> None:
        """Wait until all processes of ``torchrun``, if there are several, are here."""
        if self.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.barrier()

    def _fill(self, states: Sequence[str], skipped: SkippedCases) -> tuple[ScanCache, dict[int, Failure]]:
        """Read this process's share of the scans that the cache lacks; also those that failed, by their position."""
        if self.cache_dir is None or self.made_from is None:
            folder = scratch_folder(self, self.cache_dir)
        else:
            folder = Path(self.cache_dir)
        if self.rank:
            self._wait_for_others()  # the first process may replace the images
        is_replaced = is_own_cache(folder, self.output_dir) and self.rank == 0
        try:
            cache = ScanCache(folder, self._made_from, self.keys, process=self.rank, replace=is_replaced)
        finally:
            if self.rank == 0:
                self._wait_for_others()
        first, stop = (len(self.data) * number // self.world_size for number in (self.rank, self.rank + 1))
        todo = [position for position in range(first, stop) if not cache.is_usable(states[position])]
        items, missing = [self.data[position] for position in todo], [states[position] for position in todo]
        failed: dict[int, Failure] = {}
        with progress(len(todo), f"{self._task} {counted(len(todo), 'image')}") as advance:
            results = cache.stream(items, missing, self.transform, self.num_workers or 0, finish=self._finished)
            for position, item, (result, _) in zip(todo, items, results, strict=True):
                advance()
                if not isinstance(result, Exception):
                    continue
                is_of_scan = isinstance(result, ScanError) or not isinstance(result, DiffAEError)
                if self.on_bad_scan == "stop" or not is_of_scan:
                    raise result
                failed[position] = log_failure(item, position, self.keys[0], result, skipped)
        return cache, failed
