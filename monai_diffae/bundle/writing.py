"""Replace the files of a bundle's model as one set, and keep other writers out meanwhile."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from monai_diffae.bundle.described_model import describe_model
from monai_diffae.bundle.layout import (
    CONFIGS,
    FAST_FILES,
    LATENT_FILES,
    MODEL,
    MODEL_FILES,
    NEXT,
    PICTURES,
    newest_files,
)
from monai_diffae.data.atomic import disk_errors, flush, remove_abandoned, write_atomic
from monai_diffae.errors import ConfigError, MachineError

_LOCK = ".lock"
_PATIENCE_S = 10.0  # worker processes of a killed training need a few seconds to end
STAGED = ".staged-"  # prefix of hidden folders in which new files are collected
_DONE = ".done-"


class WriteLock:
    """The right to write a ``models`` folder. It ends with the process, even if that is killed.

    It waits ``patience_s`` for another process; None: 10 s.
    """

    def __init__(self, models: str | Path, patience_s: float | None = None) -> None:
        self.models = Path(models)
        self.patience_s = _PATIENCE_S if patience_s is None else patience_s
        self._lock = FileLock(self.models / _LOCK)

    def acquire(self) -> None:
        """Take the lock, and complete what a killed process has left incomplete."""
        with disk_errors(self.models.name):
            self.models.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=self.patience_s)
            except Timeout as error:
                raise ConfigError(
                    f"{self.models.resolve().parent.name}: another process trains or publishes this bundle; wait until "
                    "it has ended, or choose another folder"
                ) from error
        try:
            bundle = self.models.parent
            remove_abandoned(self.models, bundle, bundle / CONFIGS, bundle / PICTURES)
            _complete(self.models)
            for folder in [*self.models.glob(f"{STAGED}*"), *self.models.glob(f"{_DONE}*")]:
                shutil.rmtree(folder, ignore_errors=True)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the lock back; does nothing without it."""
        self._lock.release()

    def __enter__(self) -> WriteLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def replace_files(models: Path, writers: Mapping[str, Callable[[Path], object]], removed: Collection[str] = ()) -> None:
    """Replace files of a bundle's model in one step; the caller has the :class:`WriteLock`.

    The complete new set is written to a hidden folder, which is then renamed to ``next``. From that moment on, readers
    use the files in ``next``. They are put in their places, and ``next`` is removed. If the process is killed at any
    time, either the old or the new set is complete.
    """
    staged = models / f"{STAGED}{secrets.token_hex(4)}"
    try:
        with disk_errors(models.name):
            staged.mkdir(parents=True)
        for name, writer in writers.items():
            write_atomic(staged / name, writer)
        for name in {*MODEL_FILES, *LATENT_FILES, *FAST_FILES} - writers.keys() - set(removed):
            if (models / name).is_file():
                write_atomic(staged / name, partial(_link_or_copy, models / name))
        with disk_errors(models.name):
            flush(staged)
            staged.rename(models / NEXT)
            flush(models)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    _complete(models)


def complete_publication(models: Path) -> bool:
    """Put the files of a newer model in their places, if the process that did so was killed, or is doing it now.

    This package reads a newer model from ``next`` in any case. Other programs read only ``models/model.pt``. Returns
    whether there was a newer model.
    """
    if newest_files(models) == models:
        return False
    give_up = time.monotonic() + _PATIENCE_S
    while newest_files(models) != models:
        try:
            with WriteLock(models, patience_s=0.0):
                pass  # taking the lock completes it
        except ConfigError:  # the process that has the lock puts the files in their places
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)
        except MachineError as error:
            bundle = models.resolve().parent.name
            raise MachineError(
                f"{bundle}: models/{NEXT} has a newer model than models/{MODEL}, and the folder cannot be written; "
                "make it writable, or copy the bundle"
            ) from error
    return True


def _complete(models: Path) -> None:
    """Put the files of ``next`` in their places, if there are any."""
    newer = newest_files(models)
    if newer == models:
        return
    with disk_errors(models.name):
        with tempfile.TemporaryDirectory(dir=models, prefix=STAGED) as folder:
            for name in (*MODEL_FILES, *LATENT_FILES, *FAST_FILES):
                if (newer / name).is_file():
                    _link_or_copy(newer / name, Path(folder) / name)
                    (Path(folder) / name).replace(models / name)
                else:
                    (models / name).unlink(missing_ok=True)
        describe_model(models.parent)
        done = models / f"{_DONE}{secrets.token_hex(4)}"
        flush(models)
        newer.rename(done)  # in one step: readers see all of it or nothing
        flush(models)
    shutil.rmtree(done, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # not all file systems have links
        shutil.copyfile(source, target)
        flush(target)
