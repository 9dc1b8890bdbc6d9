"""Progress in the log; a bar needs a terminal."""

import logging

from monai_diffae.data import progress as progress_module
from monai_diffae.data.progress import progress, track


def test_without_a_terminal_one_line_is_logged_and_all_items_are_yielded(caplog):
    caplog.set_level(logging.INFO, "monai_diffae")
    assert list(track("abc", "reading")) == ["a", "b", "c"]
    assert [record.message for record in caplog.records] == ["reading"]


def test_long_work_on_items_logs_how_far_it_is(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "monai_diffae")
    seconds = iter([0, 31, 50])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(seconds))
    assert list(track("ab", "inverting")) == ["a", "b"]
    assert [record.message for record in caplog.records] == [
        "inverting", "1 of 2 parts, 0.0323 per second, 0:00:31 left",
    ]  # fmt: skip


def test_long_work_logs_how_far_it_is_at_intervals(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "monai_diffae")
    seconds = iter([0, 10, 40, 50])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(seconds))
    with progress(7203, "encoding") as advance:
        for _ in range(3):
            advance()
    assert [record.message for record in caplog.records] == ["encoding", "2 of 7203, 0.05 per second, 40:00:20 left"]


def test_a_single_step_logs_nothing(caplog):
    caplog.set_level(logging.INFO, "monai_diffae")
    with progress(1, "encoding") as advance:
        advance()
    assert not caplog.records
