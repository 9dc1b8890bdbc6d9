"""The requests of the page, and bad ones."""

import gzip
import io
import json
import logging
import os
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from starlette.testclient import TestClient

from monai_diffae import neighbors
from monai_diffae.data.cases import safe_file_names
from monai_diffae.explorer.app import build_app
from monai_diffae.explorer.recipes import Recipe
from monai_diffae.explorer.studio import Studio
from monai_diffae.explorer.worker import SupersededError


def client_of(exploration):
    headers = {"authorization": "Bearer t"}
    return TestClient(
        build_app(exploration, "t", 8765),
        base_url="http://127.0.0.1:8765",
        headers=headers,
        raise_server_exceptions=False,
    )


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


def test_the_page_and_its_parts_are_served(client):
    assert "not for clinical use" in client.get("/").text
    for name in ("app.js", "style.css", "icon.svg"):
        assert client.get(f"/{name}").status_code == 200
    assert client.get("/app.js").headers["content-type"].startswith("text/javascript")


def test_the_overview_has_one_value_per_case(client, explored):
    overview = client.get("/api/overview").json()
    counts = {len(overview[name]) for name in ("ids", "x", "y", "splits")} | {
        len(v) for v in overview["labels"].values()
    }
    assert counts == {12}
    assert [each["target"] for each in overview["directions"]] == ["wide"]
    assert len(overview["components"]) == 4
    assert not overview["has_samples"]


def test_a_case_has_neighbors_of_other_patients(client):
    about = client.get("/api/cases/3").json()
    assert len(about["neighbors"]) == 5
    assert 3 not in [each["row"] for each in about["neighbors"]]
    distances = [each["distance"] for each in about["neighbors"]]
    assert distances == sorted(distances)
    assert about["labels"]["wide"] in ("yes", "no")


def test_outlier_scores_are_those_of_neighbors(client, explored, labelled, tmp_path):
    neighbors(labelled.embeddings, tmp_path)
    table = pd.read_csv(tmp_path / "outliers.csv")
    scores = client.get("/api/outliers").json()
    np.testing.assert_allclose(scores["scores"], table["whitened"], atol=1e-4)
    np.testing.assert_allclose(scores["p"], table["p_whitened"], atol=1e-5)


def test_a_thumbnail_is_a_small_png_that_is_kept(client, explored):
    picture = Image.open(io.BytesIO(client.get("/api/cases/1/thumbnail.png").content))
    assert max(picture.size) <= 64
    kept = [file.stem.rpartition("-")[0] for file in explored.thumbnails.folder.rglob("*.png")]
    assert explored.atlas.cases[1].file_name in kept


def test_the_thumbnail_of_a_replaced_scan_is_made_again(client, explored):
    file = explored.atlas.cases[2].first_file
    before, content, status = client.get("/api/cases/2/thumbnail.png").content, file.read_bytes(), file.stat()
    try:
        file.write_bytes(explored.atlas.cases[3].first_file.read_bytes())
        assert client.get("/api/cases/2/thumbnail.png").content == client.get("/api/cases/3/thumbnail.png").content
    finally:
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert client.get("/api/cases/2/thumbnail.png").content == before


def test_the_plain_image_has_no_difference(client):
    header, arrays = image(client)
    assert arrays["image"].shape == (1, 16, 16)
    assert not arrays["difference"].any()
    assert header["scores"]["to_itself"] >= 0


def test_a_preview_takes_fewer_steps(client, explored):
    explored.studio.preview_steps = 2
    header, arrays = image(client, "preview", components={"1": 2.0})
    assert header["steps"] == 2 < explored.studio.steps
    assert arrays["difference"].any()


def test_a_direction_moves_the_prediction(client, explored, labelled):
    name = str(labelled.direction)
    low, high = (image(client, directions={name: s})[0]["scores"]["directions"][0]["target"] for s in (-2, 2))
    assert low < high


def test_what_does_not_change_is_computed_once(client, explored, monkeypatch):
    image(client, components={"1": 1.0})
    decoded = []
    monkeypatch.setattr(explored.studio, "_decode", lambda *codes: decoded.append(codes) or codes[1])
    monkeypatch.setattr(explored.studio.session.trained.inferer, "round_trip", None)
    image(client, components={"1": 1.5})
    assert len(decoded) == 1


def test_blending_all_of_a_second_case_is_that_case(client):
    second = image(client, case=1)[1]["image"]
    blended = image(client, blend=1, weight=1.0)[1]["image"]
    np.testing.assert_allclose(blended, second, atol=1e-3)
    assert np.abs(image(client, noise_of=1)[1]["difference"]).max() > 1e-3


def test_noise_is_a_function_of_its_seed(client):
    first, again, other = (image(client, noise_seed=seed)[1]["image"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_the_saved_image_has_the_space_of_the_scan(client, explored):
    response = client.post(
        "/api/export", params={"window": "w"}, json={"case": 2, "components": {"1": 1.0}, "detail": "own"}
    )
    assert response.headers["content-disposition"].endswith('_own_detail_synthetic.nii.gz"')
    scan = nib.load(explored.atlas.cases[2].first_file)
    saved = nib.Nifti1Image.from_bytes(gzip.decompress(response.content))
    assert saved.shape == scan.shape
    np.testing.assert_array_equal(saved.affine, scan.affine)
    assert saved.header["descrip"].item() == b"synthetic, monai_diffae"
    assert (saved.get_fdata() != scan.get_fdata()).any()


def test_a_file_name_has_one_suffix(explored):
    case = replace(explored.atlas.cases[0], id="scan_1.nii.gz", file_name=safe_file_names(["scan_1.nii.gz"])[0])
    atlas = replace(explored.atlas, cases=[case, *explored.atlas.cases[1:]])
    named = replace(explored, atlas=atlas, _outliers=Future())
    names = [named.export(Recipe(case=0, detail=detail))[0] for detail in ("model", "own")]
    assert names == ["scan_1_synthetic.nii.gz", "scan_1_own_detail_synthetic.nii.gz"]


def test_saves_in_a_row_are_all_answered(client, explored):
    """The first one got status 500, as the second replaced it."""
    params, recipes = {"window": "w"}, [{"case": 0, "components": {"1": strength}} for strength in (1.0, 2.0, 3.0)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda recipe: client.post("/api/export", params=params, json=recipe), recipes))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.content for answer in answers}) == 3


def test_a_replaced_request_is_no_error_of_the_server(client, explored, monkeypatch):
    def replaced(*arguments):
        raise SupersededError("request: replaced")

    monkeypatch.setattr(type(explored), "_wait", replaced)
    assert client.post("/api/image", params={"window": "w"}, json={"case": 0}).status_code == 204
    assert client.post("/api/export", json={"case": 0}).status_code == 409


def test_an_image_has_outlier_scores_and_a_preview_has_none(client, explored):
    recipe = {"case": 0, "components": {"1": 2.0}}
    scores = image(client, **recipe)[0]["scores"]["outlier"]
    assert set(scores) == {"case", "target", "image"}
    assert scores["case"] == pytest.approx(client.get("/api/outliers").json()["scores"][0], abs=1e-3)
    assert scores["target"] != scores["case"]
    assert image(client, "preview", **recipe)[0]["scores"]["outlier"] is None


def test_the_most_extreme_components_of_a_case_are_told(client, explored):
    about = client.get("/api/cases/0").json()
    assert len(about["components"]) == len(explored.atlas.components.directions) > 4
    first = about["extremes"][0]
    assert about["components"][first["component"] - 1] == pytest.approx(first["position"])


def test_the_scan_comes_while_the_model_is_busy(client, explored):
    free = threading.Event()
    explored.worker.submit(None, lambda check: free.wait(20))
    _, arrays = unpacked(client.get("/api/cases/0/scan"))
    free.set()
    np.testing.assert_array_equal(arrays["image"], explored.studio.open(explored.atlas.cases[0]).images[0].cpu())


def test_progress_of_an_inversion_is_told(explored):
    told = []
    studio = Studio(explored.studio.session, explored.studio.axes)
    studio._invert(studio.open(explored.atlas.cases[5]), lambda: told.append(studio.progress))
    steps = studio.steps
    assert told[1].startswith("Inverting the scan, step 1 of ")
    assert any(text.startswith("Decoding it to check x_T") for text in told)
    assert len(told) >= 2 * steps
    assert studio.progress == ""


# -- bad requests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "status", "reason"),
    [
        ({"case": 99}, 404, "case 99: the cohort has cases 0 to 11"),
        ({"case": -1}, 422, "case: Input should be greater"),
        ({"case": 0, "blend": 99}, 404, "case 99"),
        ({"case": 0, "weight": 2}, 422, "weight: "),
        ({"case": 0, "noise_of": 1, "noise_seed": 1}, 400, "noise_seed: noise_of also chooses"),
        ({"case": 0, "directions": {"/etc/passwd": 1}}, 400, "is no direction or component of this page"),
        ({"case": 0, "components": {"99": 1}}, 400, "is no direction or component of this page"),
        ({"case": 0, "components": {"1": 1000}}, 422, "components.1: "),
        ({"case": 0, "components": {"1": "x"}}, 422, "components.1: "),
        ({"case": 0, "unknown": 1}, 422, "unknown: "),
        ({"case": "../../etc/passwd"}, 422, "case: "),
        ({}, 422, "case: "),
        ([], 422, "request: "),
    ],
)
@pytest.mark.parametrize("route", ["/api/image", "/api/calls", "/api/export"])
def test_a_bad_recipe_is_refused_with_a_reason(client, route, recipe, status, reason):
    params = {"window": "w"} if route == "/api/image" else {}
    response = client.post(route, params=params, json=recipe)
    assert response.status_code == status
    assert reason in response.json()["detail"]
    assert "\n" not in response.json()["detail"]
    assert "Traceback" not in response.text


def test_own_detail_is_for_edits_only(client):
    for other in ({"blend": 1}, {"noise_of": 1}, {"noise_seed": 1}):
        response = client.post("/api/export", params={"window": "w"}, json={"case": 0, "detail": "own", **other})
        assert response.status_code == 400
        assert "own x_T" in response.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/../conftest.py", "/..%2f..%2fetc/passwd", "/page/app.py", "/app.py", "//etc/passwd", "/%2e%2e/explore.py",
        "/api/cases/..%2f..%2fscan.png/thumbnail.png", "/api/cases/0/../../secret", "/docs", "/openapi.json",
        "/api/cases/99", "/api/cases/99/thumbnail.png", "/api/cases/99/scan?window=w", "/api/cases/x",
    ],
)  # fmt: skip
def test_nothing_outside_the_cohort_is_served(client, path):
    response = client.get(path)
    assert response.status_code in (404, 422)
    assert "detail" in response.json()


def test_samples_need_a_latent_ddim(client):
    for path in ("/api/samples?count=2&seed=0&window=w", "/api/samples/calls?count=2&seed=0"):
        response = client.get(path)
        assert response.status_code == 400
        assert "no latent DDIM" in response.json()["detail"]


def test_a_scan_that_cannot_be_read_is_a_reason(labelled, open_explored, tmp_path):
    table = pd.read_csv(labelled.cohort)
    for i, file in enumerate(table["image"]):
        table.loc[i, "image"] = str(shutil.copy(file, tmp_path / f"doe_jane_{i}.nii"))
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with_bad = open_explored(labelled.bundle, tmp_path / "cohort.csv", tmp_path / "out")
    (tmp_path / "doe_jane_0.nii").write_bytes(b"no scan")
    client = client_of(with_bad)
    for response in (
        client.get("/api/cases/0/thumbnail.png"),
        client.get("/api/cases/0/scan?window=w"),
        client.post("/api/image?window=w", json={"case": 0}),
    ):
        assert response.status_code == 422
        assert "/" not in response.json()["detail"]
    assert client.get("/api/cases/1/thumbnail.png").status_code == 200
    with_bad.close()


def test_a_bug_is_one_line_without_paths(client, explored, monkeypatch, caplog):
    def fail(row):
        raise RuntimeError("/data/doe_jane.nii")

    monkeypatch.setattr(type(explored), "about", lambda self, row: fail(row))
    with caplog.at_level(logging.DEBUG):
        response = client.get("/api/cases/0")
    assert response.status_code == 500
    assert "doe_jane" not in response.text + caplog.text


def test_requests_leave_nothing_private_in_the_log(client, explored, caplog):
    with caplog.at_level(logging.DEBUG, logger="monai_diffae"):
        client.get("/api/cases/0")
        image(client, case=0, components={"2": 1.0})
        client.post("/api/image?window=w", json={"case": 99})
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("monai_diffae", "uvicorn"))]
    names = [*(case.id for case in explored.atlas.cases), "token", str(explored.caller.cohort)]
    assert not [line for line in ours for name in names if name in line]


def test_pages_of_other_machines_are_refused(client):
    assert client.get("/api/overview", headers={"origin": "https://example.org"}).status_code == 403
    assert client.get("/api/overview", headers={"host": "rebound.example.org:8765"}).status_code == 403


def test_a_picture_is_shown_with_its_own_detail_in_its_own_grid(unusual, open_explored, tmp_path):
    opened = open_explored(unusual.bundle, unusual.cohort, tmp_path, embeddings=unusual.embeddings)
    client = client_of(opened)
    header, arrays = image(client, components={"1": 2.0}, detail="own")
    assert {array.shape[1:] for array in arrays.values()} == {(20, 24)}
    np.testing.assert_allclose(arrays["scan"] + arrays["difference"], arrays["image"], atol=1e-6)
    _, plain = image(client, detail="own")
    np.testing.assert_array_equal(plain["image"], plain["scan"])
    sees_it = len(arrays["image"]) == 3  # the other bundle's encoder sees another image, which no edit changes
    assert header["scores"]["is_encoded"] is sees_it
    opened.close()


def test_a_cohort_that_is_too_small_for_outlier_scores_says_so(tiny_bundle_3d, open_explored, tmp_path):
    opened = open_explored(tiny_bundle_3d.directory, tiny_bundle_3d.cohort, tmp_path)
    assert "lower k" in client_of(opened).get("/api/outliers").json()["reason"]
    opened.close()
