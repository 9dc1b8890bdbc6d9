"""The requests of the page, who may send them, and the thread that answers them."""

import json
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from monai_diffae import neighbors
from monai_diffae.explorer.app import TokenGuard, build_app
from monai_diffae.explorer.studio import ModelWorker, SupersededError


@pytest.fixture
def guarded():
    async def answer(request):
        return PlainTextResponse("served")

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    return TestClient(TokenGuard(app, "s3cret", 8765), base_url="http://127.0.0.1:8765")


def test_without_the_token_nothing_is_served(guarded):
    paths = ("/", "/app.js", "/api/overview", "/?token=", "/?token=s3cre", "/?a=s3cret", "/?token=%ff%fe")
    other_server = {"cookie": "monai_diffae_8000=s3cret"}
    for response in (*map(guarded.get, paths), guarded.get("/", headers=other_server)):
        assert response.status_code == 403
        assert "open the whole address" in response.text
        assert "set-cookie" not in response.headers
        assert response.headers["content-security-policy"].startswith("default-src 'self'")
    assert guarded.get("/", headers={"authorization": "Bearer wrong"}).status_code == 403
    assert guarded.get("/", headers={"authorization": "Bearer s3cret"}).text == "served"


def test_the_address_sets_a_cookie_for_later_requests(guarded):
    first = guarded.get("/?token=s3cret")
    assert first.text == "served"
    assert first.headers["cache-control"] == "no-store"
    cookie = first.headers["set-cookie"]
    assert cookie.startswith("monai_diffae_8765=")
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    assert guarded.get("/app.js").text == "served"


def client_of(exploration):
    return TestClient(
        build_app(exploration, "t", 8765), base_url="http://127.0.0.1:8765", headers={"authorization": "Bearer t"},
        raise_server_exceptions=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def client(explored):
    return client_of(explored)


def unpacked(response):
    assert response.status_code == 200, response.text
    length = int.from_bytes(response.content[:4], "little")
    header, body = json.loads(response.content[4 : 4 + length]), response.content[4 + length :]
    arrays = {
        name: np.frombuffer(body, "<f4", int(np.prod(place["shape"])), place["offset"]).reshape(place["shape"])
        for name, place in header["arrays"].items()
    }
    return header, arrays


def image(client, quality="full", **recipe):
    return unpacked(client.post("/api/image", params={"window": "w", "quality": quality}, json={"case": 0, **recipe}))


def test_the_page_and_an_overview_with_one_value_per_case_are_served(client):
    assert "not for clinical use" in client.get("/").text
    assert client.get("/app.js").headers["content-type"].startswith("text/javascript")
    overview = client.get("/api/overview").json()
    columns = [*(overview[name] for name in ("ids", "x", "y", "splits")), *overview["labels"].values()]
    assert {len(values) for values in columns} == {12}
    assert [each["target"] for each in overview["directions"]] == ["wide"]
    assert len(overview["components"]) == 4
    assert not overview["has_samples"]


def test_outlier_scores_are_those_of_neighbors(client, labelled, tmp_path):
    neighbors(labelled.embeddings, tmp_path)
    table = pd.read_csv(tmp_path / "outliers.csv")
    scores = client.get("/api/outliers").json()
    np.testing.assert_allclose(scores["scores"], table["whitened"], atol=1e-4)
    np.testing.assert_allclose(scores["p"], table["p_whitened"], atol=1e-5)
    of_image = image(client, moves={"1": 2.0})[0]["scores"]["outlier"]
    assert set(of_image) == {"case", "target", "image"}
    assert of_image["case"] == pytest.approx(scores["scores"][0], abs=1e-3) != of_image["target"]


def test_a_direction_moves_the_prediction_and_a_preview_takes_fewer_steps(client, explored, labelled, monkeypatch):
    name = str(labelled.direction)
    low, plain, high = (image(client, moves={name: s}) for s in (-2, 0, 2))
    targets = [each[0]["scores"]["directions"][0]["target"] for each in (low, plain, high)]
    assert targets == sorted(set(targets))
    assert plain[1]["image"].shape == (1, 16, 16)
    assert not plain[1]["difference"].any()
    assert high[1]["difference"].any()
    monkeypatch.setattr(explored.studio, "preview_steps", 2)
    header, arrays = image(client, "preview", moves={"1": 2.0})
    assert header["steps"] == 2 < explored.studio.steps
    assert header["scores"]["outlier"] is None
    assert arrays["difference"].any()


def test_saves_in_a_row_are_all_answered(client, explored):
    """The first one got status 500, as the second replaced it."""
    params, recipes = {"window": "w"}, [{"case": 0, "moves": {"1": strength}} for strength in (1.0, 2.0, 3.0)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda recipe: client.post("/api/export", params=params, json=recipe), recipes))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.content for answer in answers}) == 3


def test_the_scan_comes_while_the_model_is_busy(client, explored):
    free = threading.Event()
    explored.worker.submit(None, lambda check: free.wait(20))
    _, arrays = unpacked(client.get("/api/cases/0/scan"))
    free.set()
    np.testing.assert_array_equal(arrays["image"], explored.studio.open(explored.atlas.cases[0]).images[0].cpu())


@pytest.mark.parametrize(
    ("recipe", "status", "reason"),
    [
        ({"case": 99}, 404, "case 99: the cohort has cases 0 to 11"),
        ({"case": 0, "detail": "own", "noise_of": 1}, 400, "own x_T"),
        ({"case": 0, "moves": {"/etc/passwd": 1}}, 400, "is no direction or component of this page"),
        ({"case": 0, "moves": {"1": 1000}}, 422, "moves.1: "),
        ({"case": 0, "unknown": 1}, 422, "unknown: "),
    ],
)
def test_a_bad_recipe_is_refused_with_a_reason(client, recipe, status, reason):
    for route in ("/api/image?window=w", "/api/calls", "/api/export"):
        response = client.post(route, json=recipe)
        assert response.status_code == status
        assert reason in response.json()["detail"]
        assert "\n" not in response.json()["detail"]


def test_nothing_outside_the_cohort_is_served_and_no_page_of_another_machine(client):
    for path in (
        "/../conftest.py", "/..%2f..%2fetc/passwd", "/app.py", "//etc/passwd", "/api/cases/0/../../secret", "/docs",
        "/api/cases/..%2f..%2fscan.png/thumbnail.png", "/api/cases/99/thumbnail.png", "/api/cases/99/scan?window=w",
    ):  # fmt: skip
        response = client.get(path)
        assert response.status_code in (404, 422)
        assert "detail" in response.json()
    for headers in ({"origin": "https://example.org"}, {"host": "rebound.example.org:8765"}):
        assert client.get("/api/overview", headers=headers).status_code == 403


def test_a_scan_that_cannot_be_read_is_a_reason(labelled, open_explored, tmp_path):
    table = pd.read_csv(labelled.cohort)
    for i, file in enumerate(table["image"]):
        table.loc[i, "image"] = str(shutil.copy(file, tmp_path / f"doe_jane_{i}.nii"))
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with_bad = open_explored(labelled.bundle, tmp_path / "cohort.csv", tmp_path / "out")
    (tmp_path / "doe_jane_0.nii").write_bytes(b"no scan")
    client = client_of(with_bad)
    image = client.post("/api/image?window=w", json={"case": 0})
    for response in (client.get("/api/cases/0/thumbnail.png"), client.get("/api/cases/0/scan?window=w"), image):
        assert response.status_code == 422
        assert "/" not in response.json()["detail"]
    assert client.get("/api/cases/1/thumbnail.png").status_code == 200
    with_bad.close()


def test_requests_leave_nothing_private_in_the_log(client, explored, caplog, monkeypatch):
    def fail(self, row):
        raise RuntimeError("/data/doe_jane.nii")

    caplog.set_level(logging.DEBUG)
    client.get("/api/cases/0")
    image(client, case=0, moves={"2": 1.0})
    client.post("/api/image?window=w", json={"case": 99})
    monkeypatch.setattr(type(explored), "describe", fail)
    response = client_of(explored).get("/api/cases/0")  # a bug of ours
    assert response.status_code == 500
    assert "doe_jane" not in response.text + caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("monai_diffae", "uvicorn"))]
    names = [*(case.id for case in explored.atlas.cases), "token", str(explored.caller.cohort)]
    assert not [line for line in ours for name in names if name in line]


def test_a_picture_is_shown_with_its_own_detail_in_its_own_grid(unusual, open_explored, tmp_path):
    opened = open_explored(unusual.bundle, unusual.cohort, tmp_path, embeddings=unusual.embeddings)
    client = client_of(opened)
    header, arrays = image(client, moves={"1": 2.0}, detail="own")
    assert {array.shape[1:] for array in arrays.values()} == {(20, 24)}
    np.testing.assert_allclose(arrays["scan"] + arrays["difference"], arrays["image"], atol=1e-6)
    _, plain = image(client, detail="own")
    np.testing.assert_array_equal(plain["image"], plain["scan"])
    sees_it = len(arrays["image"]) == 3  # the other bundle's encoder sees another image, which no edit changes
    assert ("image" in header["scores"]["outlier"]) is sees_it
    opened.close()


@pytest.fixture
def worker():
    worker = ModelWorker()
    yield worker
    worker.close()


@pytest.fixture
def busy(worker):
    """A job of the lane "image" that runs until the event is set, and then asks whether a newer one came."""
    event, started = threading.Event(), threading.Event()
    job = worker.submit("image", lambda check: (started.set(), event.wait(10), check()))
    started.wait(10)
    return job, event


def test_all_jobs_run_in_one_thread_which_an_error_does_not_end(worker):
    failed = worker.submit("image", lambda check: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(10)
    threads = {worker.submit(str(i), lambda check: threading.get_ident()).result(10) for i in range(20)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_a_job_is_dropped_for_a_newer_one_of_its_lane_also_while_it_runs_but_not_without_a_lane(worker, busy):
    (running, event), ran = busy, []
    older = [worker.submit("image", lambda check, i=i: ran.append(i)) for i in range(5)]
    newest = worker.submit("image", lambda check: ran.append("newest"))
    other = worker.submit("scan", lambda check: "other")
    without_lane = [worker.submit(None, lambda check, i=i: (check(), i)[1]) for i in range(5)]
    event.set()
    newest.result(10)
    for each in (running, *older):
        with pytest.raises(SupersededError):
            each.result(10)
    assert ran == ["newest"]
    assert other.result(10) == "other"
    assert [each.result(10) for each in without_lane] == list(range(5))
