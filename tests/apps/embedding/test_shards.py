"""Shards on disk, and the processes that share them."""

import logging
import time

import numpy as np
import pytest

from monai_diffae.apps.embedding import shards as shards_module
from monai_diffae.apps.embedding.shards import Shards
from monai_diffae.data.failures import Failure
from monai_diffae.errors import MachineError


def test_shards_hold_what_was_written_and_know_what_is_missing(tmp_path):
    shards = Shards(tmp_path / "shards", 10, 4)
    z = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert [list(shards.positions(shard)) for shard in range(len(shards))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shards.write(0, [0, 1, 3], z, [Failure("c", "c.nii", "c.nii: is empty; copy it again")], {})
    shards.write(2, [], np.empty((0, 2), np.float32), [Failure("i", "i", "é"), Failure("j", "j", "")], {})
    assert shards.missing() == [1]
    with pytest.raises(
        MachineError, match="^1 of 3 shards were not written by rank 1; run the command again to resume$"
    ):
        shards.wait(2, patience_s=0.3)
    shards.write(1, [5], z[:1] + 100, [], {})
    shards.wait(2, patience_s=0.3)
    positions, codes, failures = shards.read()
    assert positions == [0, 1, 3, 5]
    assert np.array_equal(codes, np.concatenate([z, z[:1] + 100]))
    assert [failure.case_id for failure in failures] == ["c", "i", "j"]
    assert failures[1].reason == "é"
    whole = (tmp_path / "shards" / "000001.npz").read_bytes()
    for broken in (b"broken", b"", whole[:-30]):
        (tmp_path / "shards" / "000001.npz").write_bytes(broken)
        with pytest.raises(
            MachineError, match=r"shards/000001\.npz: cannot be read; delete it and run the command again"
        ):
            shards.read()


def test_the_first_process_logs_at_times_which_others_it_waits_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shards_module, "_FIRST_WARNING_S", 0.5)
    monkeypatch.setattr(shards_module, "_WARNING_INTERVAL_S", 1.0)
    shards = Shards(tmp_path / "shards", 9, 1)
    for shard in (0, 1, 3, 4, 6, 7):
        shards.write(shard, [], np.empty((0, 2), np.float32), [], {})
    with pytest.raises(
        MachineError, match="^3 of 9 shards were not written by rank 2; run the command again to resume$"
    ):
        shards.wait(3, patience_s=2.2)
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2
    assert set(lines) == {
        "waiting for 3 of 9 shards from rank 2; if that process has ended, stop this one too and run the command again "
        "to resume"
    }
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    caplog.clear()
    shards = Shards(tmp_path / "two", 3, 1)
    shards.write(0, [], np.empty((0, 2), np.float32), [], {})
    with pytest.raises(MachineError, match="were not written by rank 1, 2; run"):
        shards.wait(3, patience_s=0.3)
    assert not caplog.records


def test_retried_patches_are_merged_in_the_cohorts_order(tmp_path):
    shards = Shards(tmp_path / "shards", 6, 3)
    z = np.arange(10, dtype=np.float32).reshape(5, 2)
    failed = [Failure(name, name, "the disk; run it again") for name in "abc"]
    shards.write(0, [], np.empty((0, 0), np.float32), failed, {})
    shards.write(1, [3, 3, 5], z[:3], failed[:1], {})
    assert (shards.failed(0), shards.failed(1)) == ([0, 1, 2], [4])
    shards.add(0, [0, 2, 2], z[:3], failed[1:2], {})
    shards.add(1, [4, 4], z[3:], [], {})
    assert (shards.failed(0), shards.failed(1)) == ([1], [])
    positions, rows, failures = shards.read()
    assert positions == [0, 2, 2, 3, 3, 4, 4, 5]
    np.testing.assert_array_equal(rows, np.concatenate([z[:3], z[:2], z[3:], z[2:3]]))
    assert failures == failed[1:2]
    shards.add(0, [], np.empty((0, 0), np.float32), failed[1:2], {})
    assert shards.read()[0] == positions


def test_the_first_process_does_not_wait_for_its_own_shards_that_another_run_removed(tmp_path):
    shards = Shards(tmp_path / "shards", 4, 1)
    for shard in (0, 1, 3):
        shards.write(shard, [], np.empty((0, 2), np.float32), [], {})
    start = time.monotonic()
    with pytest.raises(MachineError, match=r"^shards: another run of this table has removed 1 of 4 shards; run the "):
        shards.wait(2, patience_s=60)
    assert time.monotonic() - start < 10
    assert not shards.folder.exists()  # the other run has written the table
