"""What torch's libraries read when they are loaded: as many threads as the user says, which do not spin for long."""

import os

import pytest

from monai_diffae.cli import _set_up_torch


@pytest.fixture(autouse=True)
def no_settings_of_openmp(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # undone after the test
        monkeypatch.delenv(name)


def test_threads_wait_asleep_and_are_as_many_as_the_user_says():
    _set_up_torch(None)
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    _set_up_torch(2)
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    _set_up_torch(None)
    assert "GOMP_SPINCOUNT" not in os.environ
