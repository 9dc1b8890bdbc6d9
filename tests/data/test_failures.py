"""The list of failed cases."""

import pytest

from monai_diffae.data.failures import Failure, write_failures
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
