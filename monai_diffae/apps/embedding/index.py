"""An embedding index: keeps the z_sem of a changing set of scans, and encodes only new and changed ones."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from monai_diffae.apps.embedding.index_encoding import encode_cases
from monai_diffae.apps.embedding.index_store import IndexStore
from monai_diffae.apps.settings import Reading
from monai_diffae.bundle.config import model_config
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.data.atomic import ProcessLock
from monai_diffae.data.cases import Case
from monai_diffae.data.fingerprints import file_state, json_digest
from monai_diffae.data.progress import progress
from monai_diffae.errors import ConfigError, counted

logger = logging.getLogger(__name__)

PathLike: TypeAlias = str | os.PathLike[str]
Image: TypeAlias = PathLike | Sequence[PathLike]
"""A scan: a file, a folder with a DICOM series, or the files of its channels."""

_DATABASE, _LOCK = "embeddings.sqlite", "embeddings.lock"
_CODE_ROOTS = ("network_def", "preprocessing", "encoder_key", "slice_axis", "slice_range", "slice_step")


@dataclass(frozen=True)
class IndexUpdate:
    """What an update has changed.

    Attributes:
        new: ids that were encoded for the first time, sorted.
        changed: ids that were encoded again because their files have changed, sorted.
        removed: ids that were removed because the scans are gone, sorted.
        failed: ids whose new or changed files cannot be used, with the reason.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class IndexedCases:
    """The cases of one model at one time.

    Attributes:
        ids: (N,) the encoded cases, sorted.
        z_sem: (N, D) float32.
        failures: the reason for each case that cannot be used, by id.
    """

    ids: list[str]
    z_sem: NDArray[np.float32]
    failures: dict[str, str]


class EmbeddingIndex:
    """The z_sem of a set of scans that grows and changes, such as the images of an annotation server.

    A case is encoded again only if a file of it has another size or another time (of modification, or of a change
    that the system saw, such as a copy), or if the model or its overrides have changed. A case that cannot be used
    is listed with the reason, and is not tried again until its file changes (or :meth:`remove` is called with its id).
    The entries of several models are kept apart; :meth:`keep_only` removes those of former models.

    z_sem equal those of :func:`monai_diffae.embed` to the bit. A volume in a 2D bundle has one row: the mean over the
    slices that the bundle takes from it, as with ``pool="mean"``; one bad slice fails the volume.

    The index is an SQLite database in a folder of its own. Results are saved in batches, each in one transaction: a
    process that is killed loses the batch under way and nothing else, and readers never see half of one. One process
    or thread updates at a time, the others wait; reading is possible at any time. The index holds ids, checksums, z_sem
    and reasons, and no paths. Use a local disk, because locks of network file systems are not reliable.

    Args:
        folder: the folder of the index, which the first update creates.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     EmbeddingIndex(folder).remove(["case-7"])
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        self._store = IndexStore(self.folder / _DATABASE)

    def update(
        self,
        trained: TrainedBundle,
        images: Mapping[str, Image | Mapping[str, Image]],
        *,
        batch_size: int = 32,
        workers: int | None = None,
        wait_s: float | None = None,
    ) -> IndexUpdate:
        """Encode the scans that are new or have changed, and remove those that are not listed any more.

        Args:
            trained: the bundle.
            images: all scans by id; for a bundle with several images, a mapping of them by image key.
            batch_size: images on the device at once; also the number of images after which results are saved.
            workers: processes that read scans; 0: none; None: one per core (at most 8) for 256 scans or more.
            wait_s: how long to wait for another process that updates the index; None: until it has finished.

        Returns:
            What has changed.

        Raises:
            BusyError: another process is updating the index, and ``wait_s`` is over.
            ConfigError: an id is not text, a case lacks an image of the bundle, or the database is damaged.
            MachineError: the disk is full, or a worker died.
        """
        files = {name: _files(name, image, trained.image_keys) for name, image in images.items()}
        model = _model_key(trained)
        busy = f"{self.folder.name}: another process is updating this index; try again when it has finished"
        with ProcessLock(self.folder / _LOCK, busy, wait_s):
            states = {name: file_state([*itertools.chain(*each.values())]) for name, each in files.items()}
            before = self._store.states(model)
            removed = sorted(before.keys() - states.keys())
            self._store.remove(removed, model)
            todo = sorted(name for name, state in states.items() if before.get(name) != state)
            failed: dict[str, str] = {}
            if todo:
                workers = Reading(workers=workers).workers_for(len(todo))
                with progress(len(todo), f"encoding {counted(len(todo), 'case')}") as advance:
                    for batch in encode_cases(
                        [_case(name, files[name]) for name in todo], trained, batch_size, workers
                    ):
                        self._store.write(model, batch, states)
                        failed |= {name: code for name, code in batch.items() if isinstance(code, str)}
                        for _ in batch:
                            advance()
        encoded = [name for name in todo if name not in failed]
        new, changed = ([name for name in encoded if (name in before) == known] for known in (False, True))
        return IndexUpdate(new, changed, removed, failed)

    def read(self, trained: TrainedBundle) -> IndexedCases:
        """Return the cases of this model, as a consistent snapshot even while another process updates the index.

        Raises:
            ConfigError: the database is damaged.
        """
        return IndexedCases(*self._store.read(_model_key(trained)))

    def remove(self, ids: Sequence[str]) -> None:
        """Remove cases from all models; unknown ids are ignored. An update encodes a case again if it is listed.

        Raises:
            ConfigError: ``ids`` is not a list of texts, or the database is damaged.
        """
        if isinstance(ids, str) or not all(isinstance(name, str) for name in ids):
            raise ConfigError("ids: must be a list of texts; put a single id into a list")
        self._store.remove(ids)

    def keep_only(self, trained: Sequence[TrainedBundle]) -> None:
        """Remove the cases of all models but these, for example of former weights."""
        self._store.keep_only([_model_key(each) for each in trained])


def _model_key(trained: TrainedBundle) -> str:
    """A checksum of all that a z_sem depends on besides the image: the model, with overrides."""
    return json_digest([trained.made_from, model_config(trained.config, roots=_CODE_ROOTS)])


def _files(name: str, image: Image | Mapping[str, Image], keys: Sequence[str]) -> dict[str, list[PathLike]]:
    """The files of each image of a case, by image key."""
    _check_id(name)
    images = image if isinstance(image, Mapping) else {keys[0]: image}
    missing = [key for key in keys if key not in images]
    if missing:
        raise ConfigError(f"images: case '{name[:60]}' has no {missing[0]!r}; give {', '.join(keys)} for every case")
    files = {key: [each] if isinstance(each := images[key], str | os.PathLike) else each for key in keys}
    for key, paths in files.items():
        if not isinstance(paths, Sequence) or not paths or not all(isinstance(p, str | os.PathLike) for p in paths):
            raise ConfigError(f"images: {key!r} of case '{name[:60]}' is not a path or a list of paths; omit the case")
    return {key: list(paths) for key, paths in files.items()}


def _check_id(name: object) -> None:
    """Refuse ids that the database would return as something else: it holds text."""
    if not isinstance(name, str):
        kind = type(name).__name__
        raise ConfigError(f"images: the id {str(name)[:60]!r} is of type {kind}, not text; convert the ids with str")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"images: the id {name[:60]!r} is not valid Unicode; choose another id") from error


def _case(name: str, files: Mapping[str, Sequence[PathLike]]) -> Case:
    paths = {key: tuple(map(Path, each)) for key, each in files.items()}
    return Case(name, {key: each[0] if len(each) == 1 else each for key, each in paths.items()}, patient=name)
