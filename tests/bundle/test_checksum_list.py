"""The list of checksums of a bundle that was sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_diffae.bundle.checksum_list import check_files, read_checksum_list, write_checksum_list
from monai_diffae.errors import ConfigError, ScanError


def test_every_change_of_a_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_bytes(b"content")
    checksums = read_checksum_list(write_checksum_list(tmp_path, ["a b.txt"]))
    check_files(tmp_path, checksums)
    for position in range(7):
        changed = bytearray(b"content")
        changed[position] ^= 1
        (tmp_path / "a b.txt").write_bytes(changed)
        with pytest.raises(ConfigError, match=r"a b.txt: its sha256 is"):
            check_files(tmp_path, checksums)
    (tmp_path / "a b.txt").unlink()
    with pytest.raises(ConfigError, match=r"a b.txt: is listed in SHA256SUMS, but missing"):
        check_files(tmp_path, checksums)


@pytest.mark.parametrize("text", ["", "no list", "f" * 63 + "  a", "f" * 64 + " a", "f" * 64 + "  "])
def test_another_text_is_no_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(text)
    with pytest.raises(ScanError, match="is not a list of SHA-256 checksums"):
        read_checksum_list(tmp_path / "SHA256SUMS")
