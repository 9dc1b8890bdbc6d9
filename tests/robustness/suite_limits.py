"""A pytest plugin: fast tests take at most ``LONGEST_S`` processor seconds, and only those of ``TRAININGS`` train."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

LONGEST_S = 30.0
"""Processor seconds of one test with its children, against trainings and downloads by accident.

Tests should take less than 3 s (``--durations`` is printed). On other machines the same test took up to 10 s, so the
limit is far above that: no test may fail because a machine is slow.
"""

TRAININGS = {
    "tests/apps/pages/test_start.py": 1,
    "tests/apps/training/test_plan.py": 2,  # some steps each, to measure the speed
    "tests/apps/training/test_train.py": 4,
    "tests/apps/training/test_train_latent.py": 4,
    "tests/apps/training/test_distill.py": 2,
    "tests/bundle/test_given_data.py": 1,
    "tests/bundle/test_fine_tuning.py": 1,
    "tests/bundles/test_federated.py": 3,
    "tests/bundles/test_latent_space.py": 1,
    "tests/bundles/test_monai_tools.py": 1,  # it is refused
    "tests/bundles/test_overlays.py": 2,
    "tests/bundles/test_resume.py": 21,  # half of them are refused or complete
    "tests/bundles/test_training_probes.py": 3,  # two find it complete
    "tests/label/test_trainer.py": 2,
}
"""How many trainings the fast tests of a file run. One process runs a file (``--dist loadfile``)."""

SMALL_TRAINERS = ("tests/engines/", "tests/handlers/")
"""Folders whose tests run trainers without a bundle, for some milliseconds."""

MANY_MODULES = 50
"""A test that imports more waits for a large package, as the first one of a process that needs it, and is not timed."""

_trained: Counter[str] = Counter()
_file, _is_limited = "", False  # of the test that runs
_process = os.getpid()  # trainings of forked processes do not count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    began, modules = sum(os.times()[:4]), len(sys.modules)
    yield
    seconds = sum(os.times()[:4]) - began
    if item.get_closest_marker("slow") or len(sys.modules) > modules + MANY_MODULES:
        return
    if seconds > LONGEST_S:
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
