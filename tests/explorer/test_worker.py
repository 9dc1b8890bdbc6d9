"""One thread, and the newest job of a lane wins."""

import threading

import pytest

from monai_diffae.explorer.worker import ModelWorker, SupersededError


@pytest.fixture
def worker():
    worker = ModelWorker()
    yield worker
    worker.close()


@pytest.fixture
def busy(worker):
    """The worker, busy until the event is set."""
    event, started = threading.Event(), threading.Event()
    worker.submit("busy", lambda check: (started.set(), event.wait(10)))
    started.wait(10)
    return event


def test_all_jobs_run_in_one_thread(worker):
    threads = {worker.submit(str(i), lambda check: threading.get_ident()).result(10) for i in range(20)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_a_waiting_job_is_dropped_for_a_newer_one_of_its_lane(worker, busy):
    ran = []
    older = [worker.submit("image", lambda check, i=i: ran.append(i)) for i in range(5)]
    newest = worker.submit("image", lambda check: ran.append("newest"))
    other = worker.submit("scan", lambda check: "other")
    busy.set()
    newest.result(10)
    for each in older:
        with pytest.raises(SupersededError):
            each.result(10)
    assert ran == ["newest"]
    assert other.result(10) == "other"


def test_jobs_without_a_lane_are_never_replaced(worker, busy):
    results = [worker.submit(None, lambda check, i=i: (check(), i)[1]) for i in range(5)]
    busy.set()
    assert [each.result(10) for each in results] == list(range(5))


def test_a_running_job_is_told_that_a_newer_one_came(worker):
    started, go_on = threading.Event(), threading.Event()

    def run(check):
        check()
        started.set()
        go_on.wait(10)
        check()
        return "too late"

    older = worker.submit("image", run)
    started.wait(10)
    newer = worker.submit("image", lambda check: "newer")
    go_on.set()
    with pytest.raises(SupersededError):
        older.result(10)
    assert newer.result(10) == "newer"


def test_an_error_is_the_result_and_does_not_end_the_thread(worker):
    failed = worker.submit("image", lambda check: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(10)
    assert worker.submit("image", lambda check: 1).result(10) == 1


def test_lanes_are_forgotten(worker):
    for i in range(100):
        worker.submit(f"window {i}", lambda check: None).result(10)
    worker.submit("last", lambda check: None).result(10)
    assert len(worker._newest) <= 1
