"""MONAI Label's routes in threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from fastapi.testclient import TestClient
from monailabel.utils.async_tasks import utils as jobs

from monai_diffae.errors import ScanError
from monai_diffae.label.routes import in_threads, refuse_second_training


def application(num_threads=1, check=None):
    """Routes as MONAI Label declares them: async, and busy for a moment without awaiting."""
    slow, fast = APIRouter(prefix="/slow", tags=["Slow"]), APIRouter(prefix="/fast")
    running, most = [], []

    @slow.post("/{name}", summary="Takes a second")
    async def work(name: str, seconds: float = 0.2, user: str = Depends(lambda: "admin")):
        running.append(name)
        most.append(len(running))
        time.sleep(seconds)
        running.remove(name)
        if name == "broken":
            raise ScanError("a.nii: the file is empty; copy it again")
        return {"name": name, "user": user}

    @fast.get("/")
    async def answer():
        return "at once"

    app = FastAPI()
    app.include_router(in_threads(slow, num_threads, {"POST": check} if check else None))
    app.include_router(in_threads(fast))
    return app, most


def test_a_long_request_does_not_stop_the_server():
    app, _ = application()
    with TestClient(app) as client:
        thread = threading.Thread(target=client.post, args=["/slow/a?seconds=2"])
        thread.start()
        time.sleep(0.2)
        start = time.monotonic()
        assert client.get("/fast/").json() == "at once"
        assert time.monotonic() - start < 1
        assert thread.is_alive()
        thread.join()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_requests_of_a_router_wait_for_each_other(num_threads):
    app, most = application(num_threads)
    with TestClient(app) as client, ThreadPoolExecutor(4) as threads:
        list(threads.map(client.post, [f"/slow/{i}" for i in range(4)]))
    assert max(most) == num_threads


def test_arguments_descriptions_and_reasons_of_errors_are_kept():
    app, _ = application()
    with TestClient(app) as client:
        assert client.post("/slow/a?seconds=0").json() == {"name": "a", "user": "admin"}
        assert client.post("/slow/a?seconds=x").status_code == 422
        response = client.post("/slow/broken?seconds=0")
        assert (response.status_code, response.json()["detail"]) == (422, "a.nii: the file is empty; copy it again")
        described = client.get("/openapi.json").json()["paths"]["/slow/{name}"]["post"]
        assert (described["summary"], described["tags"]) == ("Takes a second", ["Slow"])


def test_tasks_after_a_request_run_although_it_fails(tmp_path):
    """They delete an uploaded scan from the temporary folder."""
    router, upload = APIRouter(prefix="/upload"), tmp_path / "scan.nii.gz"

    @router.put("/")
    async def put(background_tasks: BackgroundTasks):
        upload.write_bytes(b"scan")
        background_tasks.add_task(upload.unlink)
        raise ScanError("a.nii: the file is empty; copy it again")

    app = FastAPI()
    app.include_router(in_threads(router))
    with TestClient(app) as client:
        assert client.put("/upload/").status_code == 422
    assert not upload.exists()


def test_a_second_training_is_refused_before_it_is_queued(monkeypatch):
    app, most = application(check=refuse_second_training)
    with TestClient(app) as client:
        for status, code in (("SUBMITTED", 409), ("RUNNING", 409), ("DONE", 200)):
            monkeypatch.setitem(jobs.background_tasks, "train", [{"id": "1", "status": status}])
            assert client.post("/slow/a?seconds=0").status_code == code
    assert len(most) == 1
