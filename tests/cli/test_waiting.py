import os

import psutil
import pytest

from monai_diffae.cli import waiting

OPENMP = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def no_settings_of_openmp(monkeypatch):
    for name in OPENMP:
        monkeypatch.setenv(name, "")  # so that whatever the test sets is undone
        monkeypatch.delenv(name)


def usage(percent):
    return lambda interval: percent


@pytest.mark.parametrize(("percent", "policy"), [(0.0, None), (5.0, None), (60.0, "PASSIVE")])
def test_threads_sleep_only_if_other_programs_use_the_processors(monkeypatch, percent, policy):
    monkeypatch.setattr(psutil, "cpu_percent", usage(percent))
    waiting.choose_waiting()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


@pytest.mark.parametrize("name", OPENMP)
def test_what_the_user_has_set_is_kept(monkeypatch, name):
    monkeypatch.setattr(psutil, "cpu_percent", usage(100.0))
    monkeypatch.setenv(name, "2")
    before = dict(os.environ)
    waiting.choose_waiting()
    assert dict(os.environ) == before
