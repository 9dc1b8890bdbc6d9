"""Results: made once, shown in notebooks and pages, and made in steps."""

import base64
import functools
import json
import logging
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import monai_diffae as mdae
from monai_diffae.apps.command import command
from monai_diffae.apps.record import finished, run_once, write_record
from monai_diffae.apps.result import Result
from monai_diffae.apps.steps import Steps
from monai_diffae.cli import build_app, parse
from monai_diffae.errors import BusyError, CohortError, ConfigError


@pytest.fixture
def made(tmp_path):
    """Makes a table and three images, for a seed, in ``tmp_path / "out"``; the numbers, and whether all was there."""
    folder = tmp_path / "out"

    def make(seed=0, overwrite=False, stops=False):
        def work():
            if stops:
                raise KeyError("killed")
            (folder / "images").mkdir(exist_ok=True)
            for i in range(3):
                (folder / "images" / f"{i}.png").write_text(str(seed))
            (folder / "t.csv").write_text(str(seed))
            return {"num": 3}

        results = [folder / "t.csv", folder / "images"]
        return run_once("make", folder, results, {"seed": seed}, work, overwrite=overwrite)

    return make


def test_complete_results_are_not_made_again_and_those_of_other_things_refused(made, tmp_path):
    assert made() == ({"num": 3}, False)
    assert made() == ({"num": 3}, True)
    with pytest.raises(ConfigError, match=r"t\.csv: exists and was made with other seed; set overwrite"):
        made(seed=1)
    assert made(seed=1, overwrite=True) == ({"num": 3}, False)
    assert made(seed=1) == ({"num": 3}, True)
    hashes = json.loads((tmp_path / "out" / "record.json").read_text())["files"]
    assert len(hashes) == 4
    assert not any("png" in name or "csv" in name for name in hashes)


@pytest.mark.parametrize("name", ["t.csv", "images/1.png"])
def test_what_was_deleted_is_made_again_and_what_was_changed_is_refused(made, tmp_path, name):
    """Goal R16."""
    made()
    file = tmp_path / "out" / name
    (tmp_path / "out" / "images" / "notes.txt").write_text("the user's own")
    assert made()[1]
    file.unlink()
    assert not made()[1]
    for content in ("", "5"):
        file.write_text(content)
        with pytest.raises(ConfigError, match=rf"^{file.name}: is not what was written .*; set overwrite to make it a"):
            made()
    assert not made(overwrite=True)[1]
    assert made()[1]


def test_a_record_that_is_older_than_a_decoding_option_was_made_with_its_default(tmp_path):
    (tmp_path / "t.csv").write_text("")
    write_record("edit", tmp_path / "t.csv", {"seed": 0}, {"n": 1}, [tmp_path / "t.csv"])
    of_now = functools.partial(finished, "edit", tmp_path / "t.csv", [tmp_path / "t.csv"], overwrite=False)
    assert of_now({"seed": 0, "inversion": "implicit"}) == {"n": 1}
    with pytest.raises(ConfigError, match="made with other inversion"):
        of_now({"seed": 0, "inversion": "ddim"})
    write_record("edit", tmp_path / "t.csv", {"bundles": {"a": {"seed": 0}}}, {"n": 1}, [tmp_path / "t.csv"])
    assert of_now({"bundles": {"a": {"seed": 0, "inversion": "implicit"}}}) == {"n": 1}
    with pytest.raises(ConfigError, match="made with other bundles"):
        of_now({"bundles": {"a": {"seed": 0, "inversion": "ddim"}}})


def test_a_run_that_failed_without_a_result_refuses_no_other(made, tmp_path):
    with pytest.raises(KeyError):
        made(stops=True)
    assert not json.loads((tmp_path / "out" / "record.json").read_text())["complete"]
    assert made(seed=1) == ({"num": 3}, False)
    with pytest.raises(KeyError):
        made(seed=2, overwrite=True, stops=True)
    with pytest.raises(ConfigError, match="made with other seed"):  # the table of seed 1 is still there
        made(seed=3)


def test_files_that_are_not_ours_are_refused(made, tmp_path):
    made()
    for name in ("record.json", "t.csv"):
        (tmp_path / "out" / name).unlink()
    with pytest.raises(ConfigError, match=r"images: exists, and no record\.json beside it .*; set overwrite"):
        made()
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="is a file, or lies below one; choose a folder as out"):
        run_once("make", tmp_path / "taken" / "below", [tmp_path / "x"], {}, dict, overwrite=False)


def test_a_folder_holds_the_result_of_one_command(made, tmp_path):
    made()
    with pytest.raises(ConfigError, match=r"out: holds what make made \(record\.json\); choose another out"):
        run_once("draw", tmp_path / "out", [tmp_path / "out" / "d.csv"], {}, dict, overwrite=True)


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_runs_at_once_the_second_is_refused_and_replaces_nothing(made, tmp_path, is_first):
    if not is_first:
        made()
    folder, busy = tmp_path / "out", "out: another run is writing results there; wait until it ends, or choose another"

    def meanwhile():
        with pytest.raises(BusyError, match=busy):
            made(seed=2, overwrite=True)
        (folder / "t.csv").write_text("1")
        return {"num": 1}

    assert run_once("make", folder, [folder / "t.csv"], {}, meanwhile, overwrite=True) == ({"num": 1}, False)
    assert run_once("make", folder, [folder / "t.csv"], {}, meanwhile, overwrite=False) == ({"num": 1}, True)
    assert not list(folder.glob("*.lock"))


def test_lines_are_escaped_and_pictures_are_inside(tmp_path):
    folder = tmp_path / "<b>&"
    folder.mkdir()
    Image.new("L", (3, 2)).save(folder / "mosaic.png")
    html = Result(folder)._repr_html_()
    assert "&lt;b&gt;&amp;" in html
    assert "<b>&" not in html
    content = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert base64.b64decode(content[1]) == (folder / "mosaic.png").read_bytes()


def test_a_result_is_a_path_for_the_next_command_if_it_has_files(labelled, tmp_path):
    @command
    def use(folder: Path, other: Path | None = None) -> list[Path | None]:
        return [folder, other]

    assert use(Result(tmp_path), other=Result(tmp_path)) == [tmp_path, tmp_path]
    html = Result(labelled.embeddings)._repr_html_()
    assert "<table" in html
    assert "z_000" in html
    scores = mdae.probe(labelled.embeddings, targets=["wide"], evaluation="cv")
    with pytest.raises(ConfigError, match="wrote no files"):
        mdae.neighbors(scores, "out")


def test_a_step_runs_its_command_and_shows_it_as_it_can_be_typed(labelled, caplog):
    caplog.set_level(logging.INFO, logger="monai_diffae")
    steps = Steps()
    result = steps.attempt("Predict", "probe", embeddings=labelled.embeddings, targets=["wide"], evaluation="cv")
    assert result.rows[0]["target"] == "wide"
    assert steps.outcomes[0].result is result
    line = steps.outcomes[0].step.line
    assert f"$ {line}" in caplog.text
    assert "AUROC" in caplog.text
    function, bound = parse(build_app(), shlex.split(line)[1:])
    assert function.__name__ == "probe"
    assert bound.arguments["embeddings"] == labelled.embeddings


def test_a_step_that_fails_is_kept_with_its_reason_unless_others_need_it(tmp_path, caplog):
    steps = Steps()
    with pytest.raises(CohortError):
        steps.prepare("Predict", "probe", embeddings=tmp_path / "no.parquet")
    assert steps.outcomes == []
    assert steps.attempt("Predict", "probe", embeddings=tmp_path / "no.parquet") is None
    with pytest.raises(StopIteration):  # a bug is not hidden
        steps.attempt("Predict", "no command")
    outcome = steps.outcomes[0]
    assert outcome.result is None
    assert "no.parquet: there is no such file" in outcome.error
    assert "Predict: omitted (no.parquet" in caplog.text


@pytest.mark.goal(id="R21")
def test_a_journal_has_no_paths_unless_it_keeps_lines(tmp_path):
    for name, keeps_lines in (("private", True), ("shared", False)):
        steps = Steps(tmp_path / f"{name}.json", keeps_lines=keeps_lines)
        steps.prepare("Make", "init", out=tmp_path / f"Doe {name}")
    assert "Doe" in (tmp_path / "private.json").read_text()
    assert "Doe" not in (tmp_path / "shared.json").read_text()
    assert steps.with_earlier() == steps.outcomes
