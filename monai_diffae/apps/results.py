"""What a result was made from, in a record beside it: complete results are not made again, others not replaced."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_diffae import __version__
from monai_diffae.data.atomic import write_json
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)


def run_once(
    record: Path,
    results: Sequence[Path],
    made_from: Mapping[str, Any],
    make: Callable[[], Mapping[str, Any]],
    *,
    overwrite: bool,
) -> tuple[dict[str, Any], bool]:
    """The numbers that ``make`` gives, and whether they were there already: complete results are not made again.

    Args:
        record: the file beside the results.
        results: files, and folders of images: these are complete if they hold as many as were made.
        made_from: what the results depend on.
        make: makes them.
        overwrite: make them anew although they are there.

    Raises:
        ConfigError: there is a result of other things, which only ``overwrite`` may replace.
    """
    done = finished(record, results, made_from, overwrite=overwrite)
    if done is not None:
        logger.info("%s is complete; nothing to do (--overwrite makes it anew)", results[0].name)
        return done, True
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{record.parent.name}: is a file, or lies below one; name a folder as --out") from error
    write_record(record, made_from, {})  # not finished: for a run that is killed before the end
    numbers = dict(make())
    counts = {path.name: len(images_in(path)) for path in results if path.is_dir()}
    write_record(record, made_from, numbers, counts)
    return numbers, False


def finished(
    record: Path, results: Sequence[Path], made_from: Mapping[str, Any], *, overwrite: bool
) -> dict[str, Any] | None:
    """The numbers of a complete result that was made from the same things; None where the work is to be done.

    Raises:
        ConfigError: there is a result of other things, which only ``overwrite`` may replace.
    """
    content = _read_record(record)
    was_killed = content is not None and not content["results"]  # then its images are worth nothing without a table
    there = next((path for path in results if path.is_file() or (not was_killed and images_in(path))), None)
    if overwrite or there is None:
        return None
    if content is None:
        raise ConfigError(
            f"{there.name}: is there already, and no {record.name} beside it says what it was made from; "
            "say --overwrite or name another --out"
        )
    differ = sorted(key for key in made_from if content["made_from"].get(key) != made_from[key])
    if differ:
        raise ConfigError(
            f"{there.name}: is there already, made with other {', '.join(differ)}; "
            "say --overwrite or name another --out"
        )
    counts = content.get("files", {})
    is_whole = all(path.exists() and len(images_in(path)) >= counts.get(path.name, 0) for path in results)
    return dict(content["results"]) if content["results"] and is_whole else None


def write_record(
    path: Path, made_from: Mapping[str, Any], results: Mapping[str, Any], files: Mapping[str, int] | None = None
) -> None:
    """Write beside a result what it was made from: versions and checksums, no paths and no patients.

    Args:
        path: the record.
        made_from: what the result depends on.
        results: its numbers; none: it is not finished.
        files: how many images each of its folders holds.
    """
    content = {
        "made_from": dict(made_from), "results": dict(results), "files": dict(files or {}), "versions": versions()
    }  # fmt: skip
    write_json(path, content)


def versions() -> dict[str, str]:
    """What results depend on."""
    import monai

    return {"monai_diffae": __version__, "monai": monai.__version__, "torch": torch.__version__}


def checksum_of(values: Sequence[Any]) -> str:
    """A SHA-256 of plain values, from which they cannot be read."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _read_record(path: Path) -> dict[str, Any] | None:
    """A record that is there; None where there is none.

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
        raise ConfigError(f"{path.name}: would be written beside the result, and is another file; name another --out")
    return content


def images_in(folder: Path) -> list[Path]:
    """The images in a folder; none if it is not there."""
    return [*folder.glob("*.png"), *folder.glob("*.nii.gz")]


def remove_images(folder: Path) -> None:
    """What an earlier run wrote into a folder of images, which would stay beside the new ones."""
    for image in images_in(folder):
        image.unlink()


logger = logging.getLogger(__name__)


def log_to_open_run(metrics: Mapping[str, float], files: Sequence[Path], folder: str) -> None:
    """Log numbers and files to MLflow where a run is open in this process; tracking never fails a command.

    Args:
        metrics: of the whole cohort; nothing of single cases.
        files: pictures and tables.
        folder: of the run's artifacts, also the prefix of the metrics.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or mlflow.active_run() is None:
        return
    try:
        # a table's column may have a name that MLflow refuses, such as "age (years)"
        known = {re.sub(r"[^\w\-. /]", "_", f"{folder}/{name}"): float(value) for name, value in metrics.items()}
        mlflow.log_metrics(known)
        for file in files:
            mlflow.log_artifact(str(file), folder)
    except Exception as error:  # whatever a tracking server does, the results are on disk
        logger.warning("MLflow tracking failed: %s", type(error).__name__)
