"""``start``: from a folder of pictures in class folders to a page, by ordinary commands."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from monai_diffae import generate, init, list_scans
from monai_diffae.apps.pages.start import FirstHour, Hour, start
from monai_diffae.apps.settings import PageRun, Topics
from monai_diffae.cli import build_app, parse
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.errors import CohortError, ConfigError

pytestmark = pytest.mark.usefixtures("slow_machine", "small_pages", "uses_z_sem")


@pytest.fixture(scope="module")
def pictures(class_folders, tmp_path_factory):
    """The class folders, and among them one broken file, and a picture with another label than its twin."""
    folder = tmp_path_factory.mktemp("data") / "my pictures"
    shutil.copytree(class_folders, folder)
    (folder / "large" / "broken.png").write_bytes(b"no picture")
    shutil.copy(folder / "small" / "small (3).png", folder / "large" / "again.png")
    return folder


@pytest.fixture
def volumes(tmp_path):
    """A folder with the volumes of three virtual patients."""
    make_virtual_cohort(tmp_path / "virtual", num_patients=3, size=16, spatial_dims=3)
    return tmp_path / "virtual" / "images"


@pytest.fixture(scope="module")
def started(pictures, one_migration, tmp_path_factory):
    return start(pictures, tmp_path_factory.mktemp("out") / "first hour", minutes=1, device="cpu", yes=True)


def test_every_step_is_done_and_the_page_begins_with_the_findings(started, page_reader):
    commands = [outcome.step.command for outcome in started.outcomes]
    is_predicted = "fit-direction" in commands  # a minute trains longer on a faster machine
    assert commands == [
        "list-scans", "plan", "init", "train", "info", "embed", "reconstruct", "neighbors", "probe",
        *(["fit-direction", "edit"] if is_predicted else ["decode"]),
    ]  # fmt: skip
    assert not (started.folder / "chest_xray").exists()  # which was tried, and does not know such pictures
    page = page_reader(started.page)
    assert page.sections[:3] == ["conflicts", "reconstructions", "edits"]
    assert page.sections[-2:] == ["next", "log"]
    notes = "\n".join(started.lines())
    counted = "31 cases of unknown patients, 30 without twins and second scans"
    assert counted in notes
    assert "1 group of scans that are the same have different labels." in notes
    assert counted in page.text
    assert "2 scans show the same image as another, or nearly so (column twins of list-scans): again = " in page.text
    assert "1 pair of twins with different labels" in page.text  # a warning from before the training
    assert sum("/scans/" in each.attributes["src"] for each in page.all("img")) == 2  # at their own resolution
    conflicts = pd.read_csv(started.folder / "label_conflicts.csv")
    assert conflicts[["id", "value"]].values.tolist() == [["again", "large"], ["small (3)", "small"]]
    assert started.incomplete is None
    table = pd.read_parquet(started.folder / "embeddings" / "embeddings.parquet")
    assert sorted(table["label"].unique()) == ["large", "small"]
    assert "w_000" in table
    assert "small (3)" in set(table["id"])
    assert "monai-diffae embed" in page.text
    named = [any(word in line for _, line in started.next_lines) for word in ("predict", "--directions")]
    assert named == [is_predicted] * 2
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
    with pytest.raises(ConfigError, match=r"other minutes \(1\); choose another out"):
        start(pictures, started.folder, minutes=2, device="cpu", yes=True)
    shutil.copytree(pictures, tmp_path / pictures.name)
    shutil.copy(pictures / "small" / "small (3).png", tmp_path / pictures.name / "small" / "new.png")
    with pytest.raises(ConfigError, match="other scans or labels; choose another out"):
        start(tmp_path / pictures.name, started.folder, minutes=1, device="cpu", yes=True)


def test_scans_are_edited_along_a_label_that_z_sem_predicts(started, pictures, believe, monkeypatch):
    believe(monkeypatch)
    hour = FirstHour(pictures, started.folder, Hour(1, device="cpu"))
    hour.plan()
    found = hour.run()
    assert [outcome.step.command for outcome in hour.steps.outcomes][-2:] == ["fit-direction", "edit"]
    assert sum("directions/label.json" in line for _, line in hour.next_lines(found)) == 1  # explore
    assert any("predict" in line and "--targets label" in line for _, line in hour.next_lines(found))
    assert not any("anomaly" in line for _, line in hour.next_lines(found))  # so few scans calibrate no maps
    found.table["split"] = np.where(np.arange(len(found.table)) < 19, "val", "test")
    assert any("anomaly" in line for _, line in hour.next_lines(found))
    found.table["split"] = "val"
    assert not any("anomaly" in line for _, line in hour.next_lines(found))  # val has calibrated the maps


def test_a_shipped_model_that_knows_the_few_scans_comes_first(tmp_path):
    init(tmp_path / "model", bundle="chest_xray")
    generate(tmp_path / "model", tmp_path / "xrays", num_images=8, steps=2, device="cpu")
    hour = FirstHour(tmp_path / "xrays", tmp_path / "out", Hour(1, device="cpu"), record={"settings": {}})
    list_scans(tmp_path / "xrays" / "images", hour.table)
    run = PageRun(device="cpu")
    few = SimpleNamespace(is_embedded=True, few_images=8, slices={}, spatial_dims=2, topics=Topics(), run=run)
    shipped = hour.try_shipped(few)
    assert (shipped.name, len(shipped.table)) == ("chest_xray", 8)
    assert hour.shipped_answer(shipped)["text"].endswith("knows scans like these.")
    explanation, line = next(hour.next_lines(SimpleNamespace(), shipped))
    assert "chest_xray" in explanation
    assert line.startswith("monai-diffae report")
    assert [outcome.step.command for outcome in hour.steps.outcomes] == ["init", "info", "embed"]
    for settings, num_images in (({}, None), ({"sequences": ["T1"]}, 8), ({"colour": "grey"}, 8)):
        hour.record["settings"], few.few_images = settings, num_images
        assert hour.try_shipped(few) is None


# -- before the training -----------------------------------------------------------------------------------------------


def test_who_says_no_gets_no_training(pictures, tmp_path, typed, capsys):
    typed("n\n")
    result = start(pictures, tmp_path / "out", minutes=1, device="cpu")
    assert result.outcomes == ()
    assert list(result.lines()) == ["not started: nothing was trained"]  # there is no page to open
    assert not (tmp_path / "out" / "model").exists()
    assert "; the training measures the speed again\nspeed: " in capsys.readouterr().err


def test_what_cannot_be_started_is_one_line(pictures, volumes, tmp_path):
    with pytest.raises(ConfigError):
        start(pictures, pictures / "out", yes=True)
    assert not (pictures / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="empty: there are no scans"):
        start(tmp_path / "empty", tmp_path / "out", yes=True)
    with pytest.raises(ConfigError, match="targets: there is no label 'lable'; choose from: label"):
        start(pictures, tmp_path / "typo", targets=["lable"], device="cpu", yes=True)
    (tmp_path / "one").mkdir()
    shutil.copy(next(volumes.glob("*.nii*")), tmp_path / "one")
    with pytest.raises(CohortError, match="training needs at least two patients"):
        FirstHour(tmp_path / "one", tmp_path / "single", Hour(1, device="cpu")).plan()


def test_few_volumes_are_trained_as_slices(volumes, tmp_path):
    hour = FirstHour(volumes, tmp_path / "out", Hour(1, device="cpu"))
    hour.plan()
    assert hour.record["bundle"] == "diffae_2d"
    assert hour.record["settings"]["slice_step"] == 1
    assert any("trained on slices: a 3D model would see too few volumes" in line for line in hour.summary())
    assert next(hour.summary()).startswith("3 scans of unknown patients; labels")  # their patients are not known


def test_twins_in_the_given_train_and_test_folders_are_no_dead_end(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "set" / "train")
    (tmp_path / "set" / "test" / "small").mkdir(parents=True)
    shutil.copy(pictures / "small" / "small (3).png", tmp_path / "set" / "test" / "small" / "twin.png")
    hour = FirstHour(tmp_path / "set", tmp_path / "out", Hour(1, device="cpu"))
    hour.plan()
    listed = hour.steps.outcomes[0]
    assert "group_duplicates" not in listed.step.arguments
    assert len(listed.result.twins["separated"]) == 1


@pytest.mark.parametrize(
    ("num_patients", "voxel_mm", "error", "bundle", "remark"),
    [
        (30, 3, None, "3d", ""),  # fine enough
        (30, 8, None, "2d", "The model is trained on slices: in the given time, a 3D model has voxels of 8 x 8 x 8 mm"),
        (
            30,
            8,
            CohortError("v: constant"),
            "3d",
            "Fine detail is lost: in the given time",
        ),  # slices of masks are empty
        (300, 8, None, "3d", "Fine detail is lost: in the given time"),
    ],
)
def test_coarse_voxels_of_few_volumes_lead_to_slices_or_to_a_remark(num_patients, voxel_mm, error, bundle, remark):
    def prepare(title, command, **arguments):
        if "bundle" in arguments and error is not None:
            raise error
        survey = SimpleNamespace(spacings_mm=np.ones((5, 3)))
        name = "2d" if "bundle" in arguments else "3d"
        return SimpleNamespace(
            plan=SimpleNamespace(settings={"spacing_mm": [voxel_mm] * 3}, survey=survey, bundle=name)
        )

    hour = FirstHour(Path("scans"), Path("out"), Hour())
    hour.steps = SimpleNamespace(prepare=prepare)
    appearance = SimpleNamespace(colour=[], of_dims=lambda dims: [dims])
    plan, said = hour._plan(SimpleNamespace(appearance=appearance, listing=SimpleNamespace(num_patients=num_patients)))
    assert plan.bundle == bundle
    assert said.startswith(remark)
    assert bool(said) == bool(remark)
