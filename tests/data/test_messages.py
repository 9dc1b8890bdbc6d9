"""The list of failed cases, warnings, and progress in the log."""

import logging

import pytest

from monai_diffae.data import progress as progress_module
from monai_diffae.data.progress import Failure, SkippedCases, progress, track, write_failures
from monai_diffae.errors import ConfigError

FAILURE = Failure("c1", "c1.nii", 'c1.nii: "odd", cut; copy it again')


def test_the_list_of_failures_is_replaced_and_deleted_but_never_a_file_of_the_user(tmp_path):
    path = tmp_path / "new" / "failures.csv"
    assert write_failures(path, []) == path
    assert not path.exists()
    write_failures(path, [FAILURE])
    assert path.read_text() == 'case_id,file,reason\nc1,c1.nii,"c1.nii: ""odd"", cut; copy it again"\n'
    write_failures(path, [])
    assert not path.exists()
    path.write_text("mine")
    write_failures(path, [])
    with pytest.raises(ConfigError, match=r"^failures\.csv: already exists and was not written by this package"):
        write_failures(path, [FAILURE])
    assert path.read_text() == "mine"


def test_slices_of_one_volume_that_fail_alike_are_one_warning(caplog):
    skipped = SkippedCases()
    for volume in "ab":
        for k in range(9):
            reason = f"{volume}.nii: the file is empty; copy it again" if k else "another reason"
            skipped.log(Failure(f"{volume}_z{k:03d}", f"{volume}.nii", reason), volume)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [
        "case a_z000 skipped: another reason",
        "case a_z001 skipped: a.nii: the file is empty; copy it again",
        "case b_z000 skipped: another reason",
        "case b_z001 skipped: b.nii: the file is empty; copy it again",
    ]


def test_without_a_terminal_lines_say_how_far_long_work_is(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "monai_diffae")
    seconds = iter([0, 31, 50, 0, 10, 40, 50])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(seconds))
    assert list(track("ab", "inverting")) == ["a", "b"]
    with progress(7203, "encoding") as advance:
        for _ in range(3):
            advance()
    assert caplog.messages == [
        "inverting",
        "1 of 2 parts, 31 s each, 0:00:31 left",
        "encoding",
        "2 of 7203, 20 s each, 40:00:20 left",
    ]
