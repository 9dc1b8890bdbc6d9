"""A pytest plugin: fast tests take at most ``LONGEST_S`` processor seconds, and only those of ``TRAININGS`` train."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

LONGEST_S = 10.0
"""Processor seconds of one test with its children, without the time in which it imports modules.

Tests should take less than 3 s (``--durations`` is printed). On machines that other programs use, the same test took 2
to 6 s, so the limit is above that. On a slower processor, it grows in proportion to the time of a loop.
"""

LOOP_S = 0.035
"""Processor seconds of ``_loop`` on a quiet core of the machine on which the limit was chosen."""

TRAININGS = {
    "tests/apps/pages/test_start.py": 1,
    "tests/apps/training/test_plan.py": 2,  # some steps each, to measure the speed
    "tests/apps/training/test_train.py": 4,
    "tests/apps/training/test_train_latent.py": 4,
    "tests/apps/training/test_distill.py": 2,
    "tests/bundle/test_given_data.py": 1,
    "tests/bundle/test_fine_tuning.py": 1,
    "tests/bundles/test_autoencoder_kl.py": 1,
    "tests/bundles/test_federated.py": 3,
    "tests/bundles/test_monai_tools.py": 1,  # it is refused
    "tests/bundles/test_non_finite.py": 2,
    "tests/bundles/test_overlays.py": 1,
    "tests/bundles/test_resume.py": 20,  # half of them are refused or complete
    "tests/bundles/test_training_probes.py": 3,  # two find it complete
    "tests/label/test_trainer.py": 2,
}
"""How many trainings the fast tests of a file run. One process runs a file (``--dist loadfile``)."""

SMALL_TRAINERS = ("tests/engines/", "tests/handlers/")
"""Folders whose tests run trainers without a bundle, for some milliseconds."""

_imports_s = 0.0
_trained: Counter[str] = Counter()
_file, _is_limited = "", False  # of the test that runs
_process = os.getpid()  # trainings of forked processes do not count


def pytest_configure(config: pytest.Config) -> None:
    """Measure the time of imports: the first test of a process that needs a large package waits for it."""
    bootstrap = importlib._bootstrap  # type: ignore[attr-defined]
    load, depth = bootstrap._find_and_load, 0

    def timed(name: str, import_: object) -> object:
        nonlocal depth
        global _imports_s
        began, depth = time.process_time(), depth + 1
        try:
            return load(name, import_)
        finally:
            depth -= 1
            if depth == 0:
                _imports_s += time.process_time() - began

    bootstrap._find_and_load = timed


def _loop() -> float:
    """The processor seconds of two million additions."""
    began = time.process_time()
    sum(range(2_000_000))
    return time.process_time() - began


def _processor_seconds() -> float:
    return sum(os.times()[:4]) - _imports_s


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    began = _processor_seconds()
    yield
    seconds = _processor_seconds() - began
    if seconds <= LONGEST_S or item.get_closest_marker("slow"):
        return
    if seconds > LONGEST_S * max(1.0, _loop() / LOOP_S):
        pytest.fail(f"took {seconds:.1f} processor seconds: make it shorter, or mark it slow", pytrace=False)


def pytest_collection_finish() -> None:
    """Count the trainings of each file and its fixtures, if a collected file has imported the trainer."""
    module = sys.modules.get("monai_diffae.engines.trainer")
    if module is None:
        return
    run = module.ResumableTrainer.run

    def counted(trainer: Any) -> None:
        if _is_limited and os.getpid() == _process:
            _trained[_file] += 1
            if _trained[_file] > TRAININGS.get(_file, 0):
                pytest.fail(
                    f"{_file}: trains {_trained[_file]} times, more than tests/robustness/suite_limits.py allows",
                    pytrace=False,
                )
        run(trainer)

    module.ResumableTrainer.run = counted


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _file, _is_limited
    _file = item.path.relative_to(item.config.rootpath).as_posix()
    _is_limited = not (item.get_closest_marker("slow") or _file.startswith(SMALL_TRAINERS))
