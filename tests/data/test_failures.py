"""The list of failed cases."""

import logging

import pytest

from monai_diffae.data.failures import Failure, SkippedCases, write_failures
from monai_diffae.errors import ConfigError

FAILURE = Failure("c1", "c1.nii", "c1.nii: the file is empty; copy it again")


def test_without_failures_an_older_list_is_deleted(tmp_path):
    path = tmp_path / "failures.csv"
    assert write_failures(path, []) == path
    assert not path.exists()
    write_failures(path, [FAILURE])
    assert path.read_text().splitlines()[1] == "c1,c1.nii,c1.nii: the file is empty; copy it again"
    write_failures(path, [])
    assert not path.exists()


def test_a_file_of_the_users_own_is_never_touched(tmp_path):
    path = tmp_path / "failures.csv"
    path.write_text("mine")
    write_failures(path, [])
    message = r"^failures\.csv: already exists and was not written by this package; move it, or choose another out$"
    with pytest.raises(ConfigError, match=message):
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


def test_cases_whose_files_have_the_same_name_and_defect_are_a_warning_each(caplog):
    skipped = SkippedCases()
    for k in range(7):
        skipped.log(Failure(f"sub-{k}", "t1.nii", "t1.nii: the file is empty; copy it again"))
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 6
    assert warnings[-1] == "more cases are skipped; failures.csv lists all of them"
