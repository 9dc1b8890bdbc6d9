"""``start``: from a folder of pictures in class folders to a page, by ordinary commands."""

import io
import json
import shlex
import shutil
import sys
from urllib.parse import unquote

import pandas as pd
import pytest
from PIL import Image

from monai_diffae.apps.pages.start import FirstHour, start, write_start_page
from monai_diffae.apps.result import Result
from monai_diffae.apps.steps import Outcome, Step
from monai_diffae.apps.training import grids, speed
from monai_diffae.cli import build_app, parse
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.engines import memory
from monai_diffae.engines.memory import Memory
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.latents import Direction


@pytest.fixture(scope="module")
def pictures(class_folders, tmp_path_factory):
    """The class folders, and one broken file among them."""
    folder = tmp_path_factory.mktemp("data") / "my pictures"
    shutil.copytree(class_folders, folder)
    (folder / "large" / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def volumes(tmp_path):
    """A folder with the volumes of three virtual patients."""
    make_virtual_cohort(tmp_path / "virtual", num_patients=3, size=16, spatial_dims=3)
    return tmp_path / "virtual" / "images"


@pytest.fixture(scope="module", autouse=True)
def slow_machine():
    """A machine on which one minute suffices for a few steps only, and whose memory suffices for everything."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (grids, memory):
            patch.setattr(module, "run_memory", lambda network, workload: Memory(0, 0, 0, 0))
        patch.setattr(speed, "measure_speed", lambda config, device, items, size: speed.Speed(8.0, size))
        yield


@pytest.fixture(scope="module")
def started(pictures, one_migration, slow_machine, tmp_path_factory):
    return start(pictures, tmp_path_factory.mktemp("out") / "first hour", minutes=1, device="cpu", yes=True)


def test_every_step_is_done_and_shown(started):
    assert [outcome.step.command for outcome in started.outcomes] == [
        "list-scans", "plan", "init", "train", "embed", "probe", "fit-direction", "edit", "neighbors", "reconstruct",
    ]  # fmt: skip
    assert started.incomplete is None
    table = pd.read_parquet(started.folder / "embeddings" / "embeddings.parquet")
    assert sorted(table["label"].unique()) == ["large", "small"]
    assert "small (3)" in set(table["id"])
    for name in ("edits/edits.png", "neighbors/neighbors.png", "reconstructions/mosaic.png", "index.html"):
        assert (started.folder / name).is_file()
    page = started.page.read_text(encoding="utf-8")
    assert "edits/edits.png" in page
    assert "monai-diffae embed" in page
    lines = [outcome.step.line for outcome in started.outcomes] + [line for _, line in started.next_lines]
    for line in lines:  # each can be typed
        parse(build_app(), shlex.split(line)[1:])


def test_a_second_call_does_nothing_again(started, pictures):
    model = started.folder / "model" / "models" / "model.safetensors"
    before = model.stat().st_mtime_ns
    again = start(pictures, started.folder, minutes=1, device="cpu", yes=True)
    assert model.stat().st_mtime_ns == before
    assert "train" not in [outcome.step.command for outcome in again.outcomes]
    page = again.page.read_text(encoding="utf-8")
    assert all(f"monai-diffae {command} " in page for command in ("plan", "init", "train", "embed"))
    assert "the training in" in page
    assert "z_sem_usage" in page
    assert again.incomplete is None
    json.dumps(again.json())


def test_another_duration_or_added_scans_need_another_folder(started, pictures, tmp_path):
    with pytest.raises(ConfigError, match="other minutes; choose another out"):
        start(pictures, started.folder, minutes=2, device="cpu", yes=True)
    shutil.copytree(pictures, tmp_path / pictures.name)
    shutil.copy(pictures / "small" / "small (3).png", tmp_path / pictures.name / "small" / "new.png")
    with pytest.raises(ConfigError, match="other scans or labels; choose another out"):
        start(tmp_path / pictures.name, started.folder, minutes=1, device="cpu", yes=True)


@pytest.mark.slow
def test_a_label_that_z_sem_does_not_predict_is_not_edited(started, pictures, monkeypatch):
    monkeypatch.setattr(Direction, "may_be_chance", True)
    hour = FirstHour(pictures, started.folder, 1, [], {}, "cpu")
    hour.plan()
    next_lines = hour.run()
    assert [outcome.step.command for outcome in hour.steps.outcomes if not outcome.step.is_preparation] == [
        "probe", "fit-direction", "traverse", "neighbors", "reconstruct",
    ]  # fmt: skip
    assert next_lines[0][0].startswith(
        "z_sem predicts none of the labels (label) clearly better than chance, so no scan is"
    )


# -- before the training -----------------------------------------------------------------------------------------------


def test_who_says_no_gets_no_training(pictures, tmp_path, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    result = start(pictures, tmp_path / "out", minutes=1, device="cpu")
    assert result.outcomes == ()
    assert list(result.lines()) == ["not started: nothing was trained"]  # there is no page to open
    assert not (tmp_path / "out" / "model").exists()
    assert "predicted time" in capsys.readouterr().err


def test_what_cannot_be_started_is_one_line(pictures, volumes, tmp_path):
    with pytest.raises(ConfigError, match="lies in the folder of scans"):
        start(pictures, pictures / "out", yes=True)
    assert not (pictures / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="empty: there are no scans"):
        start(tmp_path / "empty", tmp_path / "out", yes=True)
    with pytest.raises(ConfigError, match="targets: there is no label 'lable'; there are: label"):
        start(pictures, tmp_path / "typo", targets=["lable"], device="cpu", yes=True)
    (tmp_path / "one").mkdir()
    shutil.copy(next(volumes.glob("*.nii*")), tmp_path / "one")
    with pytest.raises(CohortError, match="training needs at least two patients"):
        FirstHour(tmp_path / "one", tmp_path / "single", 1, [], {}, "cpu").plan()


def test_few_volumes_are_trained_as_slices(volumes, tmp_path):
    hour = FirstHour(volumes, tmp_path / "out", 1, [], {}, "cpu")
    hour.plan()
    assert hour.record["bundle"] == "diffae_2d"
    assert hour.record["settings"]["slice_step"] == 1
    assert any("slices" in line for line in hour.summary())


def test_twins_in_the_given_train_and_test_folders_are_no_dead_end(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "set" / "train")
    (tmp_path / "set" / "test" / "small").mkdir(parents=True)
    shutil.copy(pictures / "small" / "small (3).png", tmp_path / "set" / "test" / "small" / "twin.png")
    hour = FirstHour(tmp_path / "set", tmp_path / "out", 1, [], {}, "cpu")
    hour.plan()
    listed = hour.steps.outcomes[0]
    assert "group_duplicates" not in listed.step.arguments
    assert len(listed.result.twins["separated"]) == 1


# -- the page ----------------------------------------------------------------------------------------------------------


def test_results_come_first_pictures_are_linked_and_names_are_text(tmp_path, page_reader):
    folder, arguments = tmp_path / "what is # here", {"bundle": "m", "cohort": "c", "out": "o"}
    folder.mkdir()
    Image.new("L", (3, 2)).save(folder / "edits.png")
    prepared = Outcome(Step("Embed", "embed", arguments, True), 1.0, Result(tmp_path))
    shown = Outcome(Step("Edit", "edit", arguments), 1.0, Result(folder))
    page = write_start_page(tmp_path / "index.html", "t", ["about"], [prepared, shown], [("Next:", "monai-diffae x")])
    reader = page_reader(page)
    assert ["open" in each.attributes for each in reader.all("details")] == [True, False]
    assert reader.all("script") == []
    assert reader.text.index("Edit (1 s)") < reader.text.index("Embed (1 s)")
    assert [(tmp_path / unquote(each.attributes["src"])).is_file() for each in reader.all("img")] == [True]
    bad = "<script>alert(1)</script>"
    failed = Outcome(Step(bad, "embed", {**arguments, "bundle": bad}), 0.0, error=bad)
    written = write_start_page(tmp_path / "bad.html", bad, [bad], [failed], [(bad, bad)])
    assert page_reader(written).text.count(bad) >= 6


def test_warnings_and_steps_of_earlier_calls_are_shown(tmp_path, page_reader):
    before = Outcome(Step("Train", "train", {}, True, typed="monai-diffae train m c"), 400.0)
    warnings = tuple(f"warning {i}" for i in range(9))
    loud = Outcome(Step("Edit", "edit", {}), 1.0, Result(tmp_path), warnings=warnings)
    text = page_reader(write_start_page(tmp_path / "index.html", "t", [], [before, loud], [])).text
    for words in (
        "Train (400 s)",
        "monai-diffae train m c",
        "Done by an earlier call.",
        "warning 4",
        "4 more warnings",
    ):
        assert words in text
    assert "warning 5" not in text
