"""The command and the Python call that the page shows make the image on the screen, to the bit."""

import gzip
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffae.apps.settings import Decoding, Reading, Run
from monai_diffae.apps.synthesis.combination import Combination
from monai_diffae.apps.synthesis.combine import Mixture, Moves
from monai_diffae.explorer.opening import Files, open_exploration
from monai_diffae.explorer.recipes import Caller, Recipe

RECIPES = {
    "plain": {},
    "direction": {"directions": {"@": 1.5}},
    "own_detail": {"directions": {"@": -2.0}, "detail": "own"},
    "components": {"components": {"1": -1.0, "3": 0.5}, "directions": {"@": 1.0}},
    "component_without_slider": {"components": {"5": 1.5, "2": 0.5}},
    "blend": {"blend": 1, "weight": 0.25, "components": {"2": 1.0}},
    "all_of_the_second": {"blend": 1, "weight": 1.0},
    "x_T_of_another": {"noise_of": 2},
    "noise": {"noise_seed": 0, "components": {"1": 1.0}},
}


def array_of(content, name):
    if name.endswith(".png"):
        return np.asarray(Image.open(content))
    return nib.Nifti1Image.from_bytes(gzip.decompress(content)).get_fdata()


@pytest.mark.parametrize("name", RECIPES)
def test_both_calls_make_the_saved_image(name, explored, labelled, run, tmp_path, monkeypatch):
    values = RECIPES[name]
    directions = {str(labelled.direction): strength for strength in values.get("directions", {}).values()}
    recipe = Recipe(case=4, **{**values, "directions": directions})
    file, content = explored.export(recipe)
    calls = explored.calls(recipe)
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*shlex.split(calls["command"])[1:])
    assert (code, error.count("error")) == (0, 0)
    (made,) = tmp_path.glob("combined/*/images/*")
    assert made.read_bytes() == content or (array_of(made.read_bytes(), file) == array_of(content, file)).all()
    by_command = array_of(made.read_bytes(), file)
    shutil.rmtree(tmp_path / "combined")
    exec(calls["python"], {})
    (made,) = tmp_path.glob("combined/*/images/*")
    assert (array_of(made.read_bytes(), file) == by_command).all()


def test_the_settings_of_the_page_are_part_of_the_calls(labelled, tmp_path):
    files = Files(labelled.bundle, labelled.cohort, tmp_path, labelled.embeddings)
    settings = (
        Decoding(steps=2, solver="ddim"),
        Reading(columns={"id": "id"}),
        Run(device="cpu", overrides={"model_range": [-1, 1]}),
    )
    opened = open_exploration(files, 2, *settings)
    command = opened.calls(Recipe(case=0))["command"]
    assert "--steps 2 --solver ddim" in command
    assert "--columns id=id" in command
    assert "--device cpu --overrides 'model_range=[-1,1]'" in command
    opened.close()


def test_the_calls_use_the_decoder_of_the_page(tmp_path):
    decoding = Decoding(decoder="fast")
    caller = Caller(Path("bundle"), Path("scans.csv"), Path("table.parquet"), decoding, Reading(), Run())
    for command, python in (
        caller.combine("case", Combination.of(Mixture(), Moves({}, {})), "model"),
        caller.generate(2, 3),
    ):
        assert "--decoder fast" in command
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
