"""What torch's libraries read when they are loaded: as many threads as the user says, which do not spin for long."""

import os

from monai_diffae.cli import _set_up_torch


def test_threads_wait_asleep_and_are_as_many_as_the_user_says_unless_the_user_has_set_how(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # undone after the test
        monkeypatch.delenv(name)
    _set_up_torch(None)
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ.pop("GOMP_SPINCOUNT") == "1000"
    _set_up_torch(2)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    _set_up_torch(None)
    assert "GOMP_SPINCOUNT" not in os.environ
