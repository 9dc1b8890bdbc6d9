import threading
import time

import psutil
import pytest
import torch

from monai_diffae.cli import waiting
from monai_diffae.cli.other_programs import OtherPrograms
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


def test_a_crowd_is_as_many_threads_more_and_leaves_again(two_threads):
    before, crowd = num_threads(), ThreadCrowd()
    crowd.gather()
    assert crowd.is_there
    assert num_threads() >= before + 2
    crowd.leave()
    assert not crowd.is_there
    assert soon(lambda: num_threads() == before)


def test_no_thread_is_left_that_could_be_within_torch_when_python_ends(two_threads, monkeypatch):
    names = {"considerate-waiting", "thread-crowd"}
    monkeypatch.setattr(waiting, "_LOOK_S", 0.01)
    monkeypatch.setattr(OtherPrograms, "share", lambda load: 1.0)
    with considerate_waiting():
        assert soon(lambda: names <= {thread.name for thread in threading.enumerate()})
    assert not names & {thread.name for thread in threading.enumerate()}


def test_results_are_the_same_to_the_bit_in_a_crowd(two_threads):
    images = torch.rand(4, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(8, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    alone = torch.nn.functional.conv2d(images, weights)
    crowd = ThreadCrowd()
    crowd.gather()
    assert torch.equal(torch.nn.functional.conv2d(images, weights), alone)
    crowd.leave()


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
        assert soon(lambda: len(looks) > 10)
        assert (num_threads() > before + 1) == is_crowded  # the thread that looks is one more
    assert soon(lambda: num_threads() == before)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_has_set_is_kept(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    before = num_threads()
    with considerate_waiting():
        assert num_threads() == before
