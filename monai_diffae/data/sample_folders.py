"""Folders of sample data: whether they are complete, and whether they may be replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_diffae.data.atomic import write_atomic
from monai_diffae.errors import ConfigError, MachineError

RECORD = "sample-data.json"


def is_complete(directory: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether ``directory`` holds the complete sample data of these parameters: record, table and all images."""
    table = directory / "cohort.csv"
    if _read_record(directory) != dict(parameters) or not table.is_file():
        return False
    rows = table.read_text().count("\n") - 1
    return sum(1 for _ in (directory / "images").glob("*-*")) == rows


def claim_folder(directory: Path, parameters: Mapping[str, Any], *, overwrite: bool) -> None:
    """Prepare a folder for sample data: delete older sample data, and write the parameters into a record.

    Images go into ``directory / "images"``.
    """
    images = directory / "images"
    record = _read_record(directory)
    if record is None:
        if (directory / "cohort.csv").exists() or (images.is_dir() and any(images.iterdir())):
            raise ConfigError(f"{directory}: holds a cohort.csv or images of your own; choose another folder")
    elif record != dict(parameters) and not overwrite:
        keys = sorted(key for key in {*record, *parameters} if record.get(key) != parameters.get(key))
        changed = ", ".join(f"{key} {record.get(key)} instead of {parameters.get(key)}" for key in keys)
        raise ConfigError(f"{directory}: holds sample data with {changed}; set overwrite or choose another folder")
    try:
        (directory / "cohort.csv").unlink(
            missing_ok=True
        )  # first, because without it the sample data count as incomplete
        images.mkdir(parents=True, exist_ok=True)
        for old in images.glob("*-*"):
            old.unlink()
    except OSError as error:
        raise MachineError(f"{directory}: cannot be written ({error.strerror}); choose another folder") from error
    text = json.dumps(dict(parameters), indent=2) + "\n"
    write_atomic(directory / RECORD, lambda path: path.write_text(text))


def write_image(path: Path, content: bytes) -> None:
    """Write one of many images. It is not atomic: the table, which is written last, marks them as complete."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error


def _read_record(directory: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((directory / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
