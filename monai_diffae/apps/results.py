"""Results of commands: shown on a terminal, and recorded so that complete ones are skipped and none is overwritten."""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae import __version__
from monai_diffae.apps.result_files import images_in, missing_results, result_hashes
from monai_diffae.errors import BusyError, ConfigError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


class CommandResult:
    """What a command returns. The command line shows it, and ends with exit code 3 if ``incomplete`` says why."""

    def lines(self) -> Iterator[str]:
        """The lines for a terminal: figures first, then where the files are."""
        yield from ()

    def figures(self) -> dict[str, Any]:
        """The figures for ``--json``: plain values."""
        return {}

    def json(self) -> dict[str, Any]:
        """The figures."""
        return self.figures()

    @property
    def incomplete(self) -> str | None:
        """One line if some cases failed or were omitted: how many, and where they are listed."""
        return None

    def preview(self) -> pd.DataFrame | None:
        """A few rows of a table to look at; None: ``lines`` show everything."""
        return None

    def pictures(self) -> list[Path]:
        """The pictures to look at: those at the top of the result's folder, if it has one."""
        folder = getattr(self, "folder", None)
        return [] if folder is None else sorted(folder.glob("*.png"))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from monai_diffae.apps.pages.page import result_html

        return result_html(self)

    def __fspath__(self) -> str:
        """The folder or file of the result, so that the next command takes the result itself as its path.

        Raises:
            ConfigError: the command wrote no files.
        """
        paths = (getattr(self, name, None) for name in ("folder", "path", "table"))
        path = next((path for path in paths if path is not None), None)
        if path is None:
            raise ConfigError(f"{type(self).__name__}: the command wrote no files, so the result is no path; set out")
        return str(path)


@dataclass(frozen=True)
class FolderResult(CommandResult):
    """The result of a command that makes a folder.

    Attributes:
        folder: the folder.
    """

    folder: Path

    def lines(self) -> Iterator[str]:
        """The folder."""
        yield str(self.folder)

    def figures(self) -> dict[str, Any]:
        """The folder."""
        return {"folder": str(self.folder)}


def failed_cases(num_failed: int, num_cases: int, failures_name: str = "failures.csv") -> str | None:
    """The line about cases that failed, for :attr:`CommandResult.incomplete`; None if there are none.

    Example:
        >>> failed_cases(2, 8)
        '2 of 10 cases failed: see failures.csv'
    """
    if not num_failed:
        return None
    return f"{num_failed} of {num_failed + num_cases} cases failed: see {failures_name}"


def run_once(
    record: Path,
    results: Sequence[Path],
    made_from: Mapping[str, Any],
    make: Callable[[], Mapping[str, Any]],
    *,
    overwrite: bool,
) -> tuple[dict[str, Any], bool]:
    """Make results unless they are complete already.

    Args:
        record: the record file beside the results.
        results: files and folders of images. Their hashes are recorded, and results are complete only if all files
            still have them.
        made_from: what the results depend on: begun by :meth:`~monai_diffae.apps.session.Session.made_from`.
        make: makes the results and returns their figures.
        overwrite: replace existing results.

    Returns:
        The figures, and whether the results were there already.

    Raises:
        ConfigError: there are results made from other things, or results that were damaged or edited, and ``overwrite``
            is False.
        BusyError: another run is making the same results.
        MachineError: the folder cannot be written.
    """
    from monai_diffae.data.atomic import disk_errors, remove_abandoned

    figures = finished(record, results, made_from, overwrite=overwrite)
    if figures is not None:
        logger.info("%s is complete; nothing to do (overwrite replaces it)", results[0].name)
        return figures, True
    with disk_errors(record.parent.name):
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"{record.parent.name}: is a file, or lies below one; choose a folder as out") from error
    with _alone(record):
        figures = finished(record, results, made_from, overwrite=overwrite)  # another run may have ended meanwhile
        if figures is not None:
            return figures, True
        remove_abandoned(record.parent, *(path for path in results if path.is_dir()))
        write_record(record, made_from, {})  # unfinished, in case this run is killed
        figures = dict(make())
        write_record(record, made_from, figures, result_hashes(record.parent, results))
    return figures, False


def finished(
    record: Path, results: Sequence[Path], made_from: Mapping[str, Any], *, overwrite: bool
) -> dict[str, Any] | None:
    """The figures of complete results made from the same things; None if the work has to be done.

    Raises:
        ConfigError: there are results made from other things, or that were damaged or edited, and ``overwrite`` is
            False.
    """
    content = read_record(record)
    was_killed = content is not None and not content["results"]  # images without a table cannot be used
    existing = next((path for path in results if path.is_file() or (not was_killed and images_in(path))), None)
    if overwrite or existing is None:
        return None
    if content is None:
        raise ConfigError(
            f"{existing.name}: exists, and no {record.name} beside it says what it was made from; "
            "set overwrite, or choose another out"
        )
    differ = sorted(key for key in made_from if content["made_from"].get(key) != made_from[key])
    if differ:
        raise ConfigError(
            f"{existing.name}: exists and was made with other {', '.join(differ)}; set overwrite, or choose another out"
        )
    is_whole = all(path.exists() for path in results) and not missing_results(record, results, content.get("files", {}))
    return dict(content["results"]) if content["results"] and is_whole else None


@contextmanager
def _alone(record: Path) -> Iterator[None]:
    """Let no other run make the same results meanwhile; a lock ends with its process, however that ends.

    Raises:
        BusyError: another run is making them.
    """
    from filelock import FileLock, Timeout

    from monai_diffae.data.atomic import disk_errors

    lock = FileLock(record.with_name(f".{record.stem}.lock"), timeout=0)
    with disk_errors(record.parent.name):
        try:
            lock.acquire()
        except Timeout as error:
            raise BusyError(
                f"{record.parent.name}: another run is writing results there; wait until it ends, or choose another out"
            ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def write_record(
    path: Path,
    made_from: Mapping[str, Any],
    results: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
    scans: Mapping[str, str] | None = None,
) -> None:
    """Write beside a result what it was made from: versions and checksums, no paths and no patients.

    Args:
        path: the record.
        made_from: what the result depends on.
        results: its figures; empty: the result is not finished.
        files: its files, from :func:`~monai_diffae.apps.result_files.result_hashes`.
        scans: the state and content of the scans that were read for it.
    """
    from monai_diffae.data.atomic import write_json

    content = {
        "made_from": dict(made_from), "results": dict(results), "files": dict(files or {}), "versions": versions()
    }  # fmt: skip
    write_json(path, content if scans is None else content | {"scans": scans})


@functools.cache
def _installed_version(package: str) -> str:
    return version(package)  # parses the package's metadata


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    return {
        "monai_diffae": __version__, "monai": _installed_version("monai"), "torch": _installed_version("torch")
    }  # fmt: skip


def remove_images(folder: Path) -> None:
    """Delete the images of an earlier run, which would otherwise stay beside the new ones."""
    for image in images_in(folder):
        image.unlink()


def log_to_open_run(metrics: Mapping[str, float], files: Sequence[Path], folder: str) -> None:
    """Log figures and files to MLflow if a run is open in this process; tracking never fails a command.

    Args:
        metrics: figures of the whole cohort; nothing about single cases.
        files: pictures and tables.
        folder: the folder of the run's artifacts, also the prefix of the metrics.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or mlflow.active_run() is None:
        return
    try:
        # a table's column may have a name that MLflow refuses, such as "age (years)"
        values = {re.sub(r"[^\w\-. /]", "_", f"{folder}/{name}"): float(value) for name, value in metrics.items()}
        mlflow.log_metrics(values)
        for file in files:
            mlflow.log_artifact(str(file), folder)
    except Exception as error:  # whatever a tracking server does, the results are on disk
        logger.warning("MLflow tracking failed: %s", type(error).__name__)


def read_record(path: Path) -> dict[str, Any] | None:
    """A record, or None if there is none.

    Raises:
        ConfigError: the file is something else, which must not be overwritten.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not {"made_from", "results"} <= content.keys():
        raise ConfigError(f"{path.name}: exists and is not a record of this package; choose another out")
    return content
