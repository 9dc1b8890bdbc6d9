"""The file ``SHA256SUMS`` of a bundle that was sent to others: the checksum of each of its files.

The format is that of the program ``sha256sum``, so ``sha256sum --check SHA256SUMS`` checks a bundle, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError, ScanError

CHECKSUM_LIST = "SHA256SUMS"

_LONGEST_NAME = 255  # bytes, on all usual disks
_LARGEST_LIST = 1_000_000  # bytes
_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S(?:.*\S)?)")


def write_checksum_list(folder: Path, names: Iterable[str]) -> Path:
    """Write the checksums of files of a folder into its ``SHA256SUMS``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.txt").write_text("weights")
        ...     read_checksum_list(write_checksum_list(Path(folder), ["a.txt"]))
        {'a.txt': '9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c'}
    """
    lines = "".join(f"{file_checksum(folder / name)}  {name}\n" for name in sorted(names))
    return write_atomic(folder / CHECKSUM_LIST, lambda path: path.write_text(lines, encoding="utf-8"))


def read_checksum_list(path: Path) -> dict[str, str]:
    """The checksums by the names of their files."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_LIST + 1)
        lines = content.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScanError(f"{path.name}: cannot be read; get the bundle again") from error
    matches = [_LINE.fullmatch(line) for line in lines]
    names = {match[2] for match in matches if match is not None and _is_name(match[2])}
    if not matches or len(names) < len(matches) or len(content) > _LARGEST_LIST:
        raise ScanError(f"{path.name}: is not a list of SHA-256 checksums; get the bundle again")
    return {match[2]: match[1] for match in matches if match is not None}


def _is_name(text: str) -> bool:
    """Whether a text can be the name of a file, and can be shown in a terminal."""
    return text.isprintable() and all(len(part.encode()) <= _LONGEST_NAME for part in text.split("/"))


def check_files(folder: Path, checksums: Mapping[str, str]) -> None:
    """Check that files have the checksums of a list."""
    for name, expected in checksums.items():
        if not (folder / name).is_file():
            raise ConfigError(f"{name}: is listed in {CHECKSUM_LIST}, but missing; ask the author of the bundle")
        actual = file_checksum(folder / name)
        if actual != expected:
            raise ConfigError(
                f"{name}: its sha256 is {actual[:12]}..., but {CHECKSUM_LIST} has {expected[:12]}...; it was changed "
                "or damaged, so nothing of the bundle is kept; get it again, or ask its author"
            )
