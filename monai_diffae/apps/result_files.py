"""The files of a result, by their hashes: a result is complete only if its files are what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffae.data.fingerprints import digest, file_checksum
from monai_diffae.errors import ConfigError

_NAME_DIGITS = 16


def images_in(folder: Path) -> list[Path]:
    """The images in a folder; none if it does not exist."""
    return [*folder.glob("*.png"), *folder.glob("*.nii.gz")]


def result_hashes(root: Path, results: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of each file of a result, by a hash of its name, because names may be ids of cases.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.csv").write_text("1,2")
        ...     [len(sha256) for sha256 in result_hashes(Path(folder), [Path(folder) / "a.csv"]).values()]
        [64]
    """
    return {_key(root, file): file_checksum(file) for file in _files(results)}


def missing_results(record: Path, results: Sequence[Path], hashes: Mapping[str, Any]) -> int:
    """The number of recorded files of a result that no longer exist; its folders may also hold files of the user."""
    if not all(isinstance(value, str) for value in hashes.values()):
        return 0  # the record of an older version, which counted images
    existing = {_key(record.parent, file): file for file in _files(results)}
    for key in existing.keys() & hashes.keys():
        if file_checksum(existing[key]) != hashes[key]:
            raise ConfigError(
                f"{existing[key].name}: is not what was written (it was damaged or edited since); set overwrite to "
                "make it again, or choose another out"
            )
    return len(hashes.keys() - existing.keys())


def _files(results: Sequence[Path]) -> Iterator[Path]:
    for path in results:
        if path.is_file():
            yield path
        else:  # hidden files are not results
            yield from (file for file in path.rglob("[!.]*") if file.is_file())


def _key(root: Path, file: Path) -> str:
    name = Path(os.path.relpath(file, root)).as_posix()
    return digest(name)[:_NAME_DIGITS]
