"""A file's hash is kept until the file changes."""

import hashlib
import os
import time
from types import SimpleNamespace

import pytest

from monai_diffae.data.file_checksums import cached_checksum


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_of_the_same_size_and_time_is_told_by_its_content(tmp_path, monkeypatch, in_place):
    """On a file system whose clock ticks every second, and which uses inodes again."""
    exact = os.fstat

    def coarse(handle):
        state = exact(handle)
        times = {name: getattr(state, name) // 10**9 * 10**9 for name in ("st_mtime_ns", "st_ctime_ns")}
        return SimpleNamespace(st_dev=state.st_dev, st_ino=state.st_ino % 2, st_size=state.st_size, **times)

    monkeypatch.setattr(os, "fstat", coarse)
    path, other = tmp_path / "model.pt", tmp_path / "other"
    for i in range(50):
        content = str(i % 10).encode() * 100
        (path if in_place else other).write_bytes(content)
        if not in_place:
            other.replace(path)
        assert cached_checksum(path) == hashlib.sha256(content).hexdigest()


def test_a_file_that_did_not_change_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(b"0")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3_000_000_000)
    digest = cached_checksum(path)
    monkeypatch.setattr("monai_diffae.data.file_checksums._digest", lambda stream: "read")
    assert cached_checksum(path) == digest
    path.write_bytes(b"1")
    monkeypatch.setattr(time, "time_ns", lambda: now + 6_000_000_000)
    assert cached_checksum(path) == "read"
