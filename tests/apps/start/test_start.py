"""``start``: from a folder of pictures in class folders to a page, by ordinary commands."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from monai_diffae.apps.start import first_hour
from monai_diffae.apps.start.first_hour import FirstHour
from monai_diffae.apps.start.start import StartResult, start
from monai_diffae.apps.steps import Steps
from monai_diffae.apps.training import planning, proposals
from monai_diffae.apps.training.speed import Speed
from monai_diffae.cli import build_app, parse
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.engines.memory import Memory
from monai_diffae.errors import CohortError, ConfigError


@pytest.fixture(scope="module")
def pictures(class_folders: Path, tmp_path_factory) -> Path:
    """The class folders, and one broken file among them."""
    folder = tmp_path_factory.mktemp("data") / "my pictures"
    shutil.copytree(class_folders, folder)
    (folder / "large" / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A folder with the volumes of three virtual patients."""
    make_virtual_cohort(tmp_path / "virtual", num_patients=3, size=16, spatial_dims=3)
    return tmp_path / "virtual" / "images"


@pytest.fixture
def slow_machine(monkeypatch) -> None:
    """A machine on which one minute suffices for a few steps only, and whose memory suffices for everything."""
    monkeypatch.setattr(proposals, "run_memory", lambda network, workload: Memory(0, 0, 0, 0))
    monkeypatch.setattr(planning, "measure_speed", lambda config, device, items, batch_size: Speed(8.0, batch_size))


@pytest.fixture(scope="module")
def started(pictures: Path, one_migration: None, tmp_path_factory) -> StartResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposals, "run_memory", lambda network, workload: Memory(0, 0, 0, 0))
        patch.setattr(planning, "measure_speed", lambda config, device, items, batch_size: Speed(8.0, batch_size))
        return start(pictures, tmp_path_factory.mktemp("out") / "first hour", minutes=1, device="cpu", yes=True)


def test_every_step_is_done_and_shown(started: StartResult) -> None:
    assert [outcome.step.command for outcome in started.outcomes] == [
        "list-scans", "plan", "init", "train", "embed", "probe", "fit-direction", "edit", "neighbors", "reconstruct",
    ]  # fmt: skip
    assert started.incomplete is None
    table = pd.read_parquet(started.folder / "embeddings" / "embeddings.parquet")
    assert sorted(table["label"].unique()) == ["large", "small"]
    assert "small (3)" in set(table["id"])
    for name in ("edits/edits.png", "neighbors/neighbors.png", "reconstructions/mosaic.png", "index.html"):
        assert (started.folder / name).is_file()


def test_every_line_that_is_shown_can_be_typed(started: StartResult) -> None:
    lines = [outcome.step.line for outcome in started.outcomes] + [line for _, line in started.next_lines]
    for line in lines:
        parse(build_app(), shlex.split(line)[1:])
    page = started.page.read_text(encoding="utf-8")
    assert "edits/edits.png" in page
    assert "monai-diffae embed" in page


def test_a_second_call_does_nothing_again(started: StartResult, pictures: Path, slow_machine) -> None:
    model = started.folder / "model" / "models" / "model.pt"
    before = model.stat().st_mtime_ns
    again = start(pictures, started.folder, minutes=1, device="cpu", yes=True)
    assert model.stat().st_mtime_ns == before
    assert "train" not in [outcome.step.command for outcome in again.outcomes]
    page = again.page.read_text(encoding="utf-8")
    assert all(f"monai-diffae {command} " in page for command in ("plan", "init", "train", "embed"))
    assert "the training in" in page
    assert "z_sem_usage" in page
    assert again.incomplete is None
    json.dumps(again.figures())


def test_another_duration_is_refused(started: StartResult, pictures: Path) -> None:
    with pytest.raises(ConfigError, match="other minutes; choose another out"):
        start(pictures, started.folder, minutes=2, device="cpu", yes=True)


def test_out_may_not_lie_among_the_scans(pictures: Path) -> None:
    with pytest.raises(ConfigError, match="lies in the folder of scans"):
        start(pictures, pictures / "out", yes=True)
    assert not (pictures / "out").exists()


def test_who_says_no_gets_no_training(pictures: Path, tmp_path: Path, slow_machine, monkeypatch, capsys) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    result = start(pictures, tmp_path / "out", minutes=1, device="cpu")
    assert result.outcomes == ()
    assert list(result.lines()) == ["not started: nothing was trained"]  # there is no page to open
    assert not (tmp_path / "out" / "model").exists()
    assert "predicted time" in capsys.readouterr().err


def test_the_training_uses_the_threads_of_its_plan(tmp_path: Path, monkeypatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.setattr(Steps, "prepare", lambda *args, **kwargs: None)
    hour = FirstHour(tmp_path, tmp_path / "out", 1, (), {}, "cpu")
    hour.record = {"bundle": "diffae_2d", "settings": {}, "threads": 1, "is_trained": False}
    hour._train()
    assert threads == [1]


def test_a_label_that_z_sem_does_not_predict_is_not_edited(started: StartResult, pictures: Path, monkeypatch) -> None:
    monkeypatch.setattr(first_hour, "_CLEARLY_PREDICTED", {"binary": 2.0, "continuous": 2.0})
    hour = FirstHour(pictures, started.folder, 1, [], {}, "cpu")
    hour.look()
    next_lines = hour.run()
    assert [outcome.step.command for outcome in hour.steps.outcomes if not outcome.step.is_preparation] == [
        "probe", "fit-direction", "traverse", "neighbors", "reconstruct",
    ]  # fmt: skip
    assert next_lines[0][0].startswith("z_sem predicts none of the labels (label), so no scan is edited along one.")


def test_patients_can_be_found_in_the_names(pictures: Path, tmp_path: Path, slow_machine) -> None:
    hour = FirstHour(pictures, tmp_path / "out", 1, [], {"patient_pattern": r"\(\d"}, "cpu")
    hour.look()
    assert hour.steps.outcomes[0].result.listing.num_patients < len(hour.steps.outcomes[0].result.listing.cases)


def test_a_folder_without_scans_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="empty: there are no scans"):
        start(tmp_path / "empty", tmp_path / "out", yes=True)


def test_a_target_that_is_no_label_is_refused_before_the_training(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="targets: there is no label 'lable'; there are: label"):
        start(pictures, tmp_path / "out", targets=["lable"], device="cpu", yes=True)


def test_added_scans_need_another_folder(started: StartResult, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / pictures.name)
    shutil.copy(pictures / "small" / "small (3).png", tmp_path / pictures.name / "small" / "new.png")
    with pytest.raises(ConfigError, match="other scans or labels; choose another out"):
        start(tmp_path / pictures.name, started.folder, minutes=1, device="cpu", yes=True)


def test_of_few_volumes_the_slices_are_planned(volumes: Path, tmp_path: Path, slow_machine) -> None:
    hour = FirstHour(volumes, tmp_path / "out", 1, [], {}, "cpu")
    hour.look()
    assert hour.record["bundle"] == "diffae_2d"
    assert hour.record["settings"]["slice_step"] == 1
    assert any("slices" in line for line in hour.about())


def test_scans_of_one_patient_are_refused_in_one_line(volumes: Path, tmp_path: Path, slow_machine) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(next(volumes.glob("*.nii*")), tmp_path / "one")
    with pytest.raises(CohortError, match="training needs at least two patients"):
        FirstHour(tmp_path / "one", tmp_path / "out", 1, [], {}, "cpu").look()


def test_twins_in_the_given_train_and_test_folders_are_no_dead_end(
    pictures: Path, tmp_path: Path, slow_machine
) -> None:
    shutil.copytree(pictures, tmp_path / "set" / "train")
    (tmp_path / "set" / "test" / "small").mkdir(parents=True)
    shutil.copy(pictures / "small" / "small (3).png", tmp_path / "set" / "test" / "small" / "twin.png")
    hour = FirstHour(tmp_path / "set", tmp_path / "out", 1, [], {}, "cpu")
    hour.look()
    listed = hour.steps.outcomes[0]
    assert "group_duplicates" not in listed.step.arguments
    assert len(listed.result.twins.separated) == 1
