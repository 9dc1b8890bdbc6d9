import json

import pytest

from monai_diffae.apps.results import run_once
from monai_diffae.errors import ConfigError


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
        return run_once(folder / "t.json", results, {"seed": seed}, work, overwrite=overwrite)

    return make


def test_complete_results_are_not_made_again_and_those_of_other_things_refused(made, tmp_path):
    assert made() == ({"num": 3}, False)
    assert made() == ({"num": 3}, True)
    with pytest.raises(ConfigError, match=r"t\.csv: exists and was made with other seed; set overwrite"):
        made(seed=1)
    assert made(seed=1, overwrite=True) == ({"num": 3}, False)
    assert made(seed=1) == ({"num": 3}, True)


@pytest.mark.parametrize("missing", ["t.csv", "images/1.png"])
def test_what_was_deleted_is_made_again(made, tmp_path, missing):
    made()
    (tmp_path / "out" / "images" / "notes.txt").write_text("the user's own")
    assert made()[1]
    (tmp_path / "out" / missing).unlink()
    assert not made()[1]
    assert (tmp_path / "out" / missing).is_file()


@pytest.mark.parametrize("damaged", ["t.csv", "images/1.png"])
@pytest.mark.parametrize("content", ["", "5"])
def test_what_is_not_as_it_was_written_is_refused(made, tmp_path, damaged, content):
    """Goal R16."""
    made()
    (tmp_path / "out" / damaged).write_text(content)
    name = damaged.rpartition("/")[2]
    with pytest.raises(ConfigError, match=rf"^{name}: is not what was written .*; set overwrite to make it again"):
        made()
    assert not made(overwrite=True)[1]
    assert made()[1]


def test_the_record_names_no_file(made, tmp_path):
    made()
    hashes = json.loads((tmp_path / "out" / "t.json").read_text())["files"]
    assert len(hashes) == 4
    assert not any("png" in name or "csv" in name for name in hashes)


def test_a_record_from_before_images_were_counted_is_still_complete(made, tmp_path):
    made()
    record = tmp_path / "out" / "t.json"
    content = json.loads(record.read_text())
    del content["files"]
    record.write_text(json.dumps(content))
    assert made()[1]


def test_a_run_that_failed_without_a_result_refuses_no_other(made, tmp_path):
    with pytest.raises(KeyError):
        made(stops=True)
    assert json.loads((tmp_path / "out" / "t.json").read_text())["results"] == {}
    assert made(seed=1) == ({"num": 3}, False)
    with pytest.raises(KeyError):
        made(seed=2, overwrite=True, stops=True)
    with pytest.raises(ConfigError, match="made with other seed"):  # the table of seed 1 is still there
        made(seed=3)


def test_images_that_are_not_ours_are_refused(made, tmp_path):
    (tmp_path / "out" / "images").mkdir(parents=True)
    assert not made()[1]  # an empty folder is nothing to lose
    for name in ("t.json", "t.csv"):
        (tmp_path / "out" / name).unlink()
    with pytest.raises(ConfigError, match=r"images: exists, and no t\.json beside it .*; set overwrite"):
        made()


def test_a_file_as_the_folder_for_results_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(ConfigError, match="is a file, or lies below one; choose a folder as out"):
            run_once(folder / "r.json", [folder / "x"], {}, dict, overwrite=False)


def test_two_runs_at_once_do_not_mix_their_results(tmp_path):
    record, table = tmp_path / "t.json", tmp_path / "t.csv"

    def run(seed, work):
        return run_once(record, [table], {"seed": seed}, work, overwrite=True)

    def write():
        table.write_text("")
        return {"num": 3}

    def meet():
        run(2, write)
        raise FileNotFoundError("the other run deleted it")

    with pytest.raises(ConfigError, match="another run wrote results there at the same time, and they may be mixed"):
        run(1, lambda: run(2, write)[0])
    assert json.loads(record.read_text())["results"] == {}
    with pytest.raises(ConfigError, match="another run wrote results there"):
        run(1, meet)
    assert run(2, write) == ({"num": 3}, False)
    assert run_once(record, [table], {"seed": 2}, write, overwrite=False) == ({"num": 3}, True)
    assert "run" not in json.loads(record.read_text())
