"""Threads: as many as the user says, and how they wait while other programs use the processors, too."""

import os
import time

import psutil
import pytest
import torch

from monai_diffae.cli import waiting
from monai_diffae.cli.other_programs import OtherPrograms
from monai_diffae.cli.threads import set_threads
from monai_diffae.cli.waiting import ThreadCrowd, considerate_waiting


@pytest.fixture(autouse=True)
def no_settings_of_openmp(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def two_threads(two_threads):
    torch.ones(1 << 20).mul_(2.0)  # the threads of this one are there before they are counted


def num_threads():
    return psutil.Process().num_threads()


def soon(condition):
    """Whether something becomes true within some seconds."""
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_results_are_the_same_to_the_bit_in_a_crowd_that_leaves_again(two_threads):
    images = torch.rand(4, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(8, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    alone = torch.nn.functional.conv2d(images, weights)
    before, crowd = num_threads(), ThreadCrowd()
    crowd.gather()
    assert num_threads() >= before + 2
    assert torch.equal(torch.nn.functional.conv2d(images, weights), alone)
    crowd.leave()
    assert not crowd.is_there
    assert soon(lambda: num_threads() == before)


@pytest.mark.parametrize(("shares", "is_crowded"), [((0.0, 0.0), False), ((0.9, 0.9), True), ((0.9, 0.0), False)])
def test_threads_crowd_only_while_other_programs_use_the_processors(monkeypatch, two_threads, shares, is_crowded):
    remaining, looks = list(shares), []

    def share(load):
        looks.append(None)
        return remaining.pop(0) if len(remaining) > 1 else remaining[0]

    monkeypatch.setattr(OtherPrograms, "share", share)
    monkeypatch.setattr(waiting, "_LOOK_S", 0.02)
    before = num_threads()
    with considerate_waiting():
        assert soon(lambda: len(looks) > 5)
        assert (num_threads() > before + 1) == is_crowded  # the thread that looks is one more
    assert soon(lambda: num_threads() == before)


def test_what_the_user_says_and_has_set_is_used(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # undone after the test
    set_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    before = num_threads()
    with considerate_waiting():
        assert num_threads() == before
