"""An embedding index: keeps the z_sem of a changing set of scans, and encodes only new and changed ones."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.apps.embedding.encoding import encode_scans
from monai_diffae.apps.settings import Reading
from monai_diffae.bundle.config import model_config
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.data.atomic import PartStore, ProcessLock
from monai_diffae.data.cases import Case
from monai_diffae.data.cohort_split import expand_slices
from monai_diffae.data.fingerprints import json_digest
from monai_diffae.data.scan_states import file_state
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.policies import PathLike

Image: TypeAlias = PathLike | Sequence[PathLike]
"""A scan: a file, a folder with a DICOM series, or the files of its channels."""
Code: TypeAlias = NDArray[np.float32] | str
"""The z_sem (D,) of a case, or the reason of its failure."""

_CODE_ROOTS = ("network_def", "preprocessing", "encoder_key", "slice_axis", "slice_range", "slice_step")


@dataclass(frozen=True)
class IndexUpdate:
    """What an update has changed."""

    new: list[str] = field(default_factory=list)  #: ids that were encoded for the first time, sorted
    changed: list[str] = field(default_factory=list)  #: ids that were encoded again as their files have changed, sorted
    removed: list[str] = field(default_factory=list)  #: ids that were removed as the scans are gone, sorted
    failed: dict[str, str] = field(default_factory=dict)  #: why new or changed files cannot be used, by id


@dataclass(frozen=True, eq=False)
class IndexedCases:
    """The cases of one model at one time."""

    ids: list[str]  #: (N,) the encoded cases, sorted
    z_sem: NDArray[np.float32]  #: (N, D) float32
    failures: dict[str, str]  #: the reason for each case that cannot be used, by id


class EmbeddingIndex:
    """The z_sem of a set of scans that grows and changes, such as the images of an annotation server.

    A case is encoded again only if a file of it has another size or another time (of modification, or of a change
    that the system saw, such as a copy), or if the model or its overrides have changed. A case that cannot be used
    is listed with the reason, and is not tried again until its file changes (or :meth:`remove` is called with its id).
    The entries of several models are kept apart; :meth:`keep_only` removes those of former models.

    z_sem equal those of :func:`monai_diffae.embed` to the bit. A volume in a 2D bundle has one row: the mean over the
    slices that the bundle takes from it, as with ``pool="mean"``; one bad slice fails the volume.

    The index is a folder with one store per model, as that of :func:`monai_diffae.embed`: a process that is killed
    loses some seconds of work. One process or thread updates at a time, the others wait; readers never wait. Use a
    local disk, because locks of network file systems are not reliable.

    Args:
        folder: the folder of the index, which the first update creates.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     EmbeddingIndex(folder).remove(["case-7"])
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)

    def update(
        self,
        trained: TrainedBundle,
        images: Mapping[str, Image | Mapping[str, Image]],
        *,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> IndexUpdate:
        """Encode the scans that are new or have changed, and remove those that are not listed any more.

        Args:
            trained: the bundle.
            images: all scans by id; for a bundle with several images, a mapping of them by image key.
            batch_size: images on the device at once.
            workers: processes that read scans; 0: none; None: one per core (at most 8) for 256 scans or more.

        Returns:
            What has changed.

        Raises:
            ConfigError: a case lacks an image of the bundle.
            MachineError: the disk is full, or a worker died.
        """
        files = {name: _files(name, image, trained.image_keys) for name, image in images.items()}
        with self._lock():
            states = {name: file_state([*itertools.chain(*each.values())]) for name, each in files.items()}
            known = self._read(trained, ["state"])
            before = dict(zip(known["id"], known["state"], strict=True))
            removed = sorted(before.keys() - states.keys())
            todo = sorted(name for name, state in states.items() if before.get(name) != state)
            codes: dict[str, Code] = {}
            if removed or todo:
                store = self._store(trained)
                store.merge({*removed, *todo} & before.keys())
                cases = [_case(name, files[name]) for name in todo]
                for part in _encode(cases, trained, batch_size, Reading(workers=workers).workers_for(len(todo))):
                    store.append(_rows(part, states))
                    codes |= part
                store.merge()
        failed = {name: code for name, code in codes.items() if isinstance(code, str)}
        encoded = [name for name in todo if name not in failed]
        new, changed = ([name for name in encoded if (name in before) == is_old] for is_old in (False, True))
        return IndexUpdate(new, changed, removed, failed)

    def read(self, trained: TrainedBundle) -> IndexedCases:
        """Return the cases of this model, also while another process updates the index."""
        rows = self._read(trained, ["reason", "z_sem"])
        usable, failed = rows[rows["reason"].isna()], rows[rows["reason"].notna()]
        z_sem = np.stack([*usable["z_sem"]]) if len(usable) else np.empty((0, 0), np.float32)
        return IndexedCases([*usable["id"]], z_sem, dict(zip(failed["id"], failed["reason"], strict=True)))

    def remove(self, ids: Sequence[str]) -> None:
        """Remove cases from all models; unknown ids are ignored. An update encodes a case again if it is listed."""
        if isinstance(ids, str):  # whose letters are ids, too
            raise ConfigError("ids: must be a list of texts; put a single id into a list")
        with self._lock():
            for store in self._stores():
                store.merge(ids)

    def keep_only(self, trained: Sequence[TrainedBundle]) -> None:
        """Remove the cases of all models but these, for example of former weights."""
        with self._lock():
            kept = {self._store(each).folder for each in trained}
            for store in self._stores():
                if store.folder not in kept:
                    store.remove()

    def _stores(self) -> list[PartStore]:
        return [PartStore(each, each.name) for each in self.folder.iterdir() if each.is_dir()]

    def _store(self, trained: TrainedBundle) -> PartStore:
        """The store of a model: its name is a checksum of all that a z_sem depends on besides the image."""
        key = json_digest([trained.made_from, model_config(trained.config, roots=_CODE_ROOTS)])
        return PartStore(self.folder / key, key)

    def _read(self, trained: TrainedBundle, columns: Sequence[str]) -> pd.DataFrame:
        try:
            return self._store(trained).read(columns)
        except MachineError as error:
            name, reason = str(error).split(":")[0], error.__cause__
            raise ConfigError(f"{name}: is damaged ({reason}); delete it, and update the index again") from error

    def _lock(self) -> ProcessLock:
        return ProcessLock(self.folder / ".lock")


def _rows(codes: Mapping[str, Code], states: Mapping[str, str]) -> pd.DataFrame:
    rows = [(name, states[name], *((z, None) if isinstance(z, str) else (None, z))) for name, z in codes.items()]
    return pd.DataFrame(rows, columns=["id", "state", "reason", "z_sem"])


def _encode(cases: Sequence[Case], trained: TrainedBundle, batch_size: int, workers: int) -> Iterator[dict[str, Code]]:
    """The codes of so many cases at a time, by id; a volume in a 2D bundle gets the mean of its usable slices."""
    images, owners, codes = _images(cases, trained)
    yield codes
    items = [image.item() for image in images]
    parts = encode_scans(items, trained, batch_size, workers, lambda position: owners[position] // batch_size)
    for positions, rows, failures in parts:
        by_position: dict[int, Code] = dict(zip(positions, rows, strict=True))
        by_position |= {position: failure.reason for position, failure in failures.items()}
        pooled: dict[str, Code] = {}
        for owner, members in groupby(sorted(by_position), owners.__getitem__):
            case, made = cases[owner], [(images[position], by_position[position]) for position in members]
            reasons = [_reason(case, image, code) for image, code in made if isinstance(code, str)]
            z_sem = [code.astype(np.float64) for _, code in made if not isinstance(code, str)]
            pooled[case.id] = np.mean(z_sem, axis=0).astype(np.float32) if z_sem else reasons[0]
        yield pooled


def _images(cases: Sequence[Case], trained: TrainedBundle) -> tuple[list[Case], list[int], dict[str, Code]]:
    """The images to encode, the case that each belongs to, and the reasons of cases whose header cannot be read."""
    if trained.config["spatial_dims"] == 3:
        return list(cases), list(range(len(cases))), {}
    names = {"axis": "slice_axis", "range": "slice_range", "step": "slice_step"}
    settings = {name: trained.config[key] for name, key in names.items() if key in trained.config}
    images: list[Case] = []
    owners: list[int] = []
    failed: dict[str, Code] = {}
    for owner, case in enumerate(cases):
        slices, failures = expand_slices([case], **settings)
        images += slices
        owners += [owner] * len(slices)
        if failures:
            failed[case.id] = _reason(case, case, failures[0].reason)
    return images, owners, failed


def _reason(case: Case, image: Case, reason: str) -> str:
    """A reason without paths and file names, which may contain patients' names."""
    for file in case.files:
        reason = reason.removeprefix(f"{file.name}: ").replace(str(file), case.id).replace(str(file.parent), "")
    return reason if image.slice_index is None else f"slice {image.slice_index}: {reason}"


def _files(name: str, image: Image | Mapping[str, Image], keys: Sequence[str]) -> dict[str, Sequence[PathLike]]:
    """The files of each image of a case, by image key."""
    if not isinstance(name, str):
        raise ConfigError(f"images: the id {name!r} is not text; convert the ids with str")
    images = image if isinstance(image, Mapping) else {keys[0]: image}
    missing = [key for key in keys if key not in images]
    if missing:
        raise ConfigError(f"images: case '{name[:60]}' has no {missing[0]!r}; give {', '.join(keys)} for every case")
    files = {key: [each] if isinstance(each := images[key], str | os.PathLike) else each for key in keys}
    if not all(each and isinstance(each, Sequence) for each in files.values()):  # a set has another order in each run
        raise ConfigError(f"images: case '{name[:60]}' has no path or list of paths; omit the case")
    return files


def _case(name: str, files: Mapping[str, Sequence[PathLike]]) -> Case:
    paths = {key: tuple(map(Path, each)) for key, each in files.items()}
    return Case(name, {key: each[0] if len(each) == 1 else each for key, each in paths.items()}, patient=name)
