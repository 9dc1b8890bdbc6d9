"""Errors and log lines in ``python -m monai.bundle``, and nowhere else."""

import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from monai_diffae.bundle.run_messages import show_plain_messages_in_bundle_runs
from monai_diffae.errors import ConfigError


@pytest.fixture
def package_log(monkeypatch):
    """The package's logger without handlers; it is as before when the test ends."""
    log = logging.getLogger("monai_diffae")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = (list(log.handlers), log.level, log.propagate)
    log.handlers = []
    yield log
    log.handlers, log.propagate = before[0], before[2]
    log.setLevel(before[1])


def test_other_programs_keep_their_tracebacks_and_logging(package_log):
    hook = sys.excepthook
    show_plain_messages_in_bundle_runs()
    assert sys.excepthook is hook
    assert package_log.handlers == []


def test_a_bundle_run_prints_errors_of_ours_as_one_line(package_log, monkeypatch, capsys):
    program = ModuleType("__main__")
    program.__spec__ = ModuleSpec("monai.bundle.__main__", None)
    monkeypatch.setitem(sys.modules, "__main__", program)
    show_plain_messages_in_bundle_runs()
    assert package_log.isEnabledFor(logging.INFO)

    wrapped = RuntimeError("a component cannot be built\nsee above")
    wrapped.__cause__ = ConfigError("batch_size is 0;\nit must be at least 1")
    sys.excepthook(RuntimeError, wrapped, None)
    assert capsys.readouterr().err == "error: batch_size is 0; it must be at least 1\n"
    sys.excepthook(ValueError, ValueError("a bug"), None)
    assert "ValueError: a bug" in capsys.readouterr().err
