"""What the page shows and offers: the command, the map, and calls that make the image on the screen."""

import gzip
import re
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from forked_program import free_port
from PIL import Image

from monai_diffae.apps.settings import Decoding, Reading, Run
from monai_diffae.apps.synthesis.decode import Combination
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.errors import CohortError
from monai_diffae.explorer.atlas import Atlas, Extreme
from monai_diffae.explorer.exploration import Caller, Recipe


def test_without_a_table_the_cohort_is_embedded_once(labelled, open_explored, tmp_path, caplog):
    for _ in range(2):
        with caplog.at_level("INFO", logger="monai_diffae"):
            opened = open_explored(labelled.bundle, labelled.cohort, tmp_path / "out")
        assert len(opened.atlas.cases) == 12
        opened.close()
    assert caplog.text.count("$ monai-diffae embed") == 2
    assert caplog.text.count("is complete; nothing to do") == 1


def test_the_server_as_a_process(labelled, start_program, tmp_path):
    words = ["explore", "--bundle", labelled.bundle, "--cohort", labelled.cohort, "--embeddings", labelled.embeddings]
    shown = tmp_path / "shown"
    process = start_program(*words, "--out", tmp_path / "out", "--port", free_port(), "--no-browser", output=shown)
    address = r"open (http://127\.0\.0\.1:\d+/\?token=[\w-]{32}) \(Ctrl-C ends the server\)\n"
    while not (opened := re.search(address, shown.read_text())):
        assert process.is_alive(), shown.read_text()
        time.sleep(0.05)
    url = opened[1]
    assert httpx.get(url.partition("?")[0]).status_code == 403
    with httpx.Client() as browser:
        assert "explore" in browser.get(url).text
        assert len(browser.get(url.replace("/?", "/api/overview?")).json()["ids"]) == 12
    process.terminate()
    process.join(30)
    assert process.exitcode in (0, -15)
    assert shown.read_text().endswith(opened[0])
    assert "Traceback" not in shown.read_text()


@pytest.fixture
def atlas(explored):
    return explored.atlas


def test_coordinates_are_the_first_two_components(atlas):
    assert atlas.is_pca
    np.testing.assert_allclose(atlas.coordinates, atlas.positions[:, :2] * atlas.components.stds[:2])
    is_train = np.array(atlas.splits) == "train"
    np.testing.assert_allclose(atlas.positions[is_train].std(axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose(atlas.positions[is_train].mean(axis=0), 0, atol=1e-4)


def test_extremes_are_found_among_all_components(atlas, labelled):
    """A case that is unusual along the last component only: it has no fixed slider, and is still the most extreme."""
    extremes = atlas.extremes(2)
    sizes = [abs(each.whitened) for each in extremes]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < sum(each.share for each in extremes) <= 1 + 1e-9
    table = read_embeddings(labelled.embeddings)
    last = len(atlas.components.directions)
    strong = 30 * (1 + 0.1 / atlas.components.stds[-1])
    moved = atlas.components.traverse(z_matrix(table.iloc[[0]]), last - 1, [strong])
    table.loc[0, [name for name in table if re.fullmatch(r"z_\d+", name)]] = moved[0]
    unusual = replace(atlas, table=table)
    first = unusual.extremes(0)[0]
    assert first.component == last > unusual.num_components
    assert first.share > 0.5
    for position in (-12.0, 7.0):  # two standard deviations on the same side are typical
        assert position + Extreme(1, position, position, 0.1).to_typical == pytest.approx(np.copysign(2, position))


def test_only_cases_of_the_cohort_are_on_the_map_but_all_training_cases_count(labelled, explored, tmp_path):
    some = Atlas.open(labelled.embeddings, explored.atlas.cases[:3], 2)
    assert len(some.cases) == 3
    assert len(some.training.rows) == len(explored.atlas.training.rows)
    np.testing.assert_allclose(some.outliers[0], explored.atlas.outliers[0][:3])
    # a table with places of its own keeps them
    table = read_embeddings(labelled.embeddings)
    table.assign(x=np.arange(12.0), y=-np.arange(12.0), thumbnail=[b"png"] * 12).to_parquet(tmp_path / "e.parquet")
    atlas = Atlas.open(tmp_path / "e.parquet", explored.atlas.cases, 2)
    np.testing.assert_array_equal(atlas.coordinates, np.stack([np.arange(12.0), -np.arange(12.0)], axis=1))
    assert not {"x", "y", "thumbnail"} & set(atlas.labels)
    table.assign(id="same").to_parquet(tmp_path / "e.parquet")
    with pytest.raises(CohortError, match="unique name for each case"):
        Atlas.open(tmp_path / "e.parquet", explored.atlas.cases, 2)


RECIPES = {
    "own_detail": {"moves": {"@": -2.0}, "detail": "own"},
    "components": {"moves": {"@": 1.0, "1": -1.0, "5": 0.5}},
    "blend": {"blend": 1, "weight": 0.25, "moves": {"2": 1.0}},
    "x_T_of_another": {"noise_of": 2},
    "noise": {"noise_seed": 0, "moves": {"1": 1.0}},
}


def array_of(content, name):
    if name.endswith(".png"):
        return np.asarray(Image.open(content))
    return nib.Nifti1Image.from_bytes(gzip.decompress(content)).get_fdata()


@pytest.mark.parametrize("name", RECIPES)
def test_both_calls_make_the_saved_image(name, explored, labelled, run, tmp_path, monkeypatch):
    values = RECIPES[name]
    moves = {name.replace("@", str(labelled.direction)): each for name, each in values.get("moves", {}).items()}
    recipe = Recipe(case=4, **{**values, "moves": moves})
    file, content = explored.export(recipe)
    calls = explored.calls(recipe)
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*shlex.split(calls["command"])[1:])
    assert (code, error.count("error")) == (0, 0)
    (made,) = tmp_path.glob("decoded/*/images/*")
    assert made.read_bytes() == content or (array_of(made.read_bytes(), file) == array_of(content, file)).all()
    by_command = array_of(made.read_bytes(), file)
    shutil.rmtree(tmp_path / "decoded")
    exec(calls["python"], {})
    (made,) = tmp_path.glob("decoded/*/images/*")
    assert (array_of(made.read_bytes(), file) == by_command).all()


def test_the_settings_of_the_page_are_part_of_the_calls():
    decoding = Decoding(steps=2, solver="ddim", decoder="fast")
    run = Run(device="cpu", overrides={"model_range": [-1, 1]})
    paths = Path("bundle"), Path("scans.csv"), Path("table.parquet")
    caller = Caller(*paths, decoding, Reading(columns={"id": "id"}), run)
    command, python = caller.decode("case", Combination()).values()
    for words in ("--steps 2 --solver ddim", "--columns id=id", "--device cpu --overrides 'model_range=[-1,1]'"):
        assert words in command
    for words in (command, caller.generate(2, 3)["command"]):
        assert "--decoder fast" in words
    assert "decoder='fast'" in python


def test_samples_are_those_of_generate(labelled, latent_bundle, open_explored, tmp_path, run, monkeypatch):
    opened = open_explored(latent_bundle, labelled.cohort, tmp_path, embeddings=labelled.embeddings)
    assert opened.overview()["has_samples"]
    content = opened.samples(2, 3, "test")
    length = int.from_bytes(content[:4], "little")
    images = np.frombuffer(content[4 + length :], "<f4").reshape(2, 16, 16)
    calls = opened.sample_calls(2, 3)
    assert "seed=3" in calls["python"]
    monkeypatch.chdir(tmp_path)
    assert run(*shlex.split(calls["command"])[1:])[0] == 0
    made = [np.asarray(Image.open(tmp_path / "generated_3" / "images" / f"0000{i}.png"), float) for i in range(2)]
    np.testing.assert_allclose(np.stack(made) / 127.5 - 1, images.clip(-1, 1), atol=1 / 127)
    opened.close()
