"""Exported networks that are sent with a bundle: those of its own weights, without folders of this machine."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from monai_diffae.bundle import layout
from monai_diffae.bundle.json_files import read_values
from monai_diffae.bundle.sent_files import SENT_FILES
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError

# the absolute path of a Python file, as exported graphs may have it
_SOURCE_FILE = re.compile(rb"(/|[A-Za-z]:\\)[\w .+@-]+[/\\][\w .+@/\\-]*\.py\b")
_AGAIN = "export it again with monai-diffae export, or remove it"


def copy_networks(models: Path, target: Path, model_sha256: str) -> None:
    """Copy the networks that ``export`` wrote into a folder with a model, and their record.

    A network that the record does not list, or lists with another checksum, is not copied.
    """
    record: dict[str, Any] = {}
    with suppress(ConfigError):  # networks without a readable record are not copied
        record = read_values(models / layout.NETWORKS)
    networks, made_from = _mapping(record, "networks"), _mapping(record, "made_from")
    listed = [
        name
        for name in networks
        if _is_network(name)
        and (models / name).is_file()
        and file_checksum(models / name) == _mapping(networks, name).get("sha256")
    ]
    if not listed:
        return
    if made_from.get("model") != model_sha256:
        raise ConfigError(f"{listed[0]}: is a network of other weights than models/model.pt; {_AGAIN}")
    for name in listed:
        if any(_SOURCE_FILE.search(content) for content in _contents(models / name)):
            raise ConfigError(f"{name}: names folders of the machine on which it was exported; {_AGAIN}")
        shutil.copyfile(models / name, target / name)
    record["networks"] = {name: networks[name] for name in listed}
    (target / layout.NETWORKS).write_text(json.dumps(record), encoding="utf-8")


def _is_network(name: str) -> bool:
    file = SENT_FILES.get(f"{layout.MODELS}/{name}")
    return file is not None and file.kind == "network"


def _mapping(record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _contents(path: Path) -> Iterator[bytes]:
    """The content of a file, or of each file in an archive."""
    if not zipfile.is_zipfile(path):
        yield path.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        yield from map(archive.read, archive.namelist())
