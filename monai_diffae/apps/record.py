"""The record beside a result: what it was made from, by which a complete result is skipped and another one refused."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_diffae.bundle.description import versions
from monai_diffae.data.atomic import ProcessLock, disk_errors, remove_abandoned, write_json
from monai_diffae.data.fingerprints import digest, file_checksum
from monai_diffae.diffusion.settings import DecodingSettings
from monai_diffae.errors import ConfigError, OtherResultsError

logger = logging.getLogger(__name__)

RECORD = "record.json"
FILE_SUFFIXES = (".parquet", ".csv", ".json")
"""Suffixes of results that are a file, whose record ``<name>.json`` lies beside them; others are folders."""
_NAME_DIGITS = 16


def record_of(path: Path) -> Path:
    """The record of a result: ``record.json`` in its folder, or ``embeddings.json`` beside ``embeddings.parquet``."""
    return path.with_suffix(".json") if path.suffix.lower() in FILE_SUFFIXES else path / RECORD


def run_once(
    command: str,
    out: Path,
    results: Sequence[Path],
    made_from: Mapping[str, Any],
    make: Callable[[], Mapping[str, Any]],
    *,
    overwrite: bool,
) -> tuple[dict[str, Any], bool]:
    """Make results unless they are complete already; returns their figures, and whether they were complete."""
    record = record_of(out)
    figures = finished(command, out, results, made_from, overwrite=overwrite)
    if figures is not None:
        logger.info("%s is complete; nothing to do (overwrite replaces it)", results[0].name)
        return figures, True
    with only_run(out):
        figures = finished(command, out, results, made_from, overwrite=overwrite)  # another run may have ended
        if figures is not None:
            return figures, True
        remove_abandoned(record.parent, *(path for path in results if path.is_dir()))
        write_record(command, out, made_from)  # in case this run is killed
        figures = dict(make())
        write_record(command, out, made_from, figures, results)
    return figures, False


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Refuse to begin while another run makes the same result."""
    record = record_of(out)
    with disk_errors(record.parent.name):
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"{record.parent.name}: is a file, or lies below one; choose a folder as out") from error
    busy = f"{record.parent.name}: another run is writing results there; wait until it ends, or choose another out"
    with ProcessLock(record.with_name(f".{record.stem}.lock"), busy, timeout_s=0) as lock:
        try:
            yield
        finally:
            lock.path.unlink(missing_ok=True)


def finished(
    command: str, out: Path, results: Sequence[Path], made_from: Mapping[str, Any], *, overwrite: bool
) -> dict[str, Any] | None:
    """The figures of complete results made from the same things; None if the work has to be done."""
    record = record_of(out)
    content = read_record(record)
    if content is not None and content["command"] != command:
        raise ConfigError(
            f"{record.parent.name}: holds what {content['command']} made ({record.name}); choose another out"
        )
    was_killed = content is not None and not content["complete"]  # images without a table cannot be used
    existing = next((path for path in results if path.is_file() or (not was_killed and images_in(path))), None)
    if overwrite or existing is None:
        return None
    if content is None:
        raise ConfigError(
            f"{existing.name}: exists, and no {record.name} beside it says what it was made from; "
            "set overwrite, or choose another out"
        )
    before = _filled(content["made_from"], made_from)
    differ = sorted(key for key in made_from if not _is_same(before.get(key), made_from[key]))
    if differ:
        raise OtherResultsError(
            f"{existing.name}: exists and was made with other {', '.join(differ)}; set overwrite, or choose another out"
        )
    if not all(path.exists() for path in results):
        return None
    present, hashes = dict(_files(record.parent, results)), content["files"]  # folders may also hold files of the user
    for key in present.keys() & hashes.keys():
        if file_checksum(present[key]) != hashes[key]:
            raise ConfigError(
                f"{present[key].name}: is not what was written (it was damaged or edited since); set overwrite to "
                "make it again, or choose another out"
            )
    return dict(content["figures"]) if content["complete"] and hashes.keys() <= present.keys() else None


def _filled(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a record, with the defaults of decoding options that are newer than it."""
    defaults = vars(DecodingSettings())
    return {**{key: defaults[key] for key in now.keys() & defaults.keys()}, **before}


def _is_same(before: Any, now: Any) -> bool:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return bool(before == now)
    filled = _filled(before, now)
    return filled.keys() == now.keys() and all(_is_same(filled[key], now[key]) for key in now)


def write_record(
    command: str,
    out: Path,
    made_from: Mapping[str, Any],
    figures: Mapping[str, Any] | None = None,
    results: Sequence[Path] = (),
    **more: Any,
) -> None:
    """Write what a result was made from, without paths and patients; without figures, it is not complete."""
    record = record_of(out)
    # by hashes of the names, because these may be ids of cases
    files = {} if figures is None else {key: file_checksum(file) for key, file in _files(record.parent, results)}
    write_json(
        record,
        {
            "command": command,
            "complete": figures is not None,
            "made_from": dict(made_from),
            "figures": dict(figures or {}),
            "files": files,
            "versions": versions(),
            **more,
        },
    )


def read_record(path: Path) -> dict[str, Any] | None:
    """A record, or None if there is none; any other file of this name is refused, so that it is not overwritten."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not {"command", "complete", "made_from", "figures", "files"} <= content.keys():
        raise ConfigError(f"{path.name}: exists and is not a record of this package; choose another out")
    return content


def images_in(folder: Path) -> list[Path]:
    """The images in a folder; none if it does not exist."""
    return [*folder.glob("*.png"), *folder.glob("*.nii.gz")]


def remove_images(folder: Path) -> None:
    """Delete the images of an earlier run, which would otherwise stay beside the new ones."""
    for image in images_in(folder):
        image.unlink()


def _files(root: Path, results: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """The files of a result, each with a hash of its name."""
    for path in results:  # hidden files are not results
        for file in [path] if path.is_file() else [file for file in path.rglob("[!.]*") if file.is_file()]:
            name = Path(os.path.relpath(file, root)).as_posix()
            yield digest(name)[:_NAME_DIGITS], file
