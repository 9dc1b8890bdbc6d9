"""Check the checksums of zip archives, which PyTorch writes into its files but does not check when it reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path


def check_archive(path: Path) -> None:
    """Check that the content of a zip archive is what was written; does nothing for other files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "weights.pt"
        ...     with zipfile.ZipFile(path, "w") as archive:
        ...         archive.writestr("data/0", b"weights")
        ...     _ = path.write_bytes(path.read_bytes().replace(b"weights", b"weighty"))
        ...     check_archive(path)
        Traceback (most recent call last):
        ...
        zipfile.BadZipFile: Bad CRC-32 for file 'data/0'
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as stream:
                while stream.read(1 << 20):
                    pass
