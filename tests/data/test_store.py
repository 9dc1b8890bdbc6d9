"""A table that grows case by case: resuming, replacing, and reading with other programs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pyarrow.dataset as ds
import pytest

from monai_diffae.data.atomic import PartStore
from monai_diffae.errors import ConfigError


def rows(*ids: str, error: str | None = None, value: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame({"id": list(ids), "error": [error] * len(ids), "value": [value] * len(ids)})


def test_rows_of_several_processes_and_runs_are_one_table(tmp_path: Path) -> None:
    first, second = PartStore(tmp_path, "a", process=0), PartStore(tmp_path, "a", process=1)
    first.append(rows("a", "c"))
    second.append(rows("b", error="is empty"))
    resumed = PartStore(tmp_path, "a")
    assert resumed.done() == first.done() == {"a", "b", "c"}
    assert resumed.read()["error"].fillna("").tolist() == ["", "is empty", ""]
    assert sorted(ds.dataset(tmp_path).to_table(columns=["id"])["id"].to_pylist()) == ["a", "b", "c"]


def test_a_later_row_replaces_an_earlier_one_also_in_another_run(tmp_path: Path) -> None:
    PartStore(tmp_path, "a", process=3).append(rows("a", "b", value=1.0))
    PartStore(tmp_path, "a").append(rows("b", value=2.0))
    assert PartStore(tmp_path, "a").read()["value"].tolist() == [1.0, 2.0]


def test_parts_of_other_settings_are_refused_or_replaced(tmp_path: Path) -> None:
    PartStore(tmp_path / "parts", {"size": [64, 64]}).append(rows("a"))
    PartStore(tmp_path / "parts", {"size": (64, 64)})
    with pytest.raises(ConfigError, match="parts: holds results of other settings"):
        PartStore(tmp_path / "parts", {"size": (32, 32)})
    assert PartStore(tmp_path / "parts", {"size": (32, 32)}, replace=True).done() == set()


def test_another_process_has_removed_the_parts(tmp_path):
    store = PartStore(tmp_path / "parts", "a")
    store.append(rows("a"))
    PartStore(tmp_path / "parts", "a").remove()
    store.append(rows("b"))
    assert PartStore(tmp_path / "parts", "a").done() == {"b"}


def _append_forever(folder: Path) -> None:
    store = PartStore(folder, "a")
    for k in range(10**6):
        store.append(rows(*(f"{k}-{j}" for j in range(100))))


def test_a_killed_run_leaves_complete_parts_only(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_append_forever, args=(tmp_path,))
    process.start()
    while len(list(tmp_path.glob("part-*.parquet"))) < 5:
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    store = PartStore(tmp_path, "a")
    assert len(store.done()) == len(store.read()) >= 500
    assert len(store.done()) % 100 == 0
    assert not list(tmp_path.glob(".tmp-*"))
