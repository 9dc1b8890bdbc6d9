import pytest

from monai_diffae.bundle.consistent_reading import read_consistently
from monai_diffae.errors import MachineError

NAMES = ("model.pt", "config.json")


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    write(folder, "old")
    return folder


def write(folder, text):
    for name in NAMES:
        new = folder / "new"
        new.write_text(text)
        new.replace(folder / name)


def texts(folder):
    return [(folder / name).read_text() for name in NAMES]


def test_files_that_are_replaced_while_they_are_read_are_read_again(models):
    calls = []

    def read(folder):
        first = (folder / NAMES[0]).read_text()
        calls.append(first)
        if len(calls) < 3:
            write(models, f"new {len(calls)}")
        return [first, (folder / NAMES[1]).read_text()]

    assert read_consistently(models.parent, read, NAMES) == ["new 2", "new 2"]
    assert calls == ["old", "new 1", "new 2"]


def test_a_file_written_in_place_counts_as_replaced(models):
    calls = []

    def read(folder):
        calls.append(None)
        content = texts(folder)
        if len(calls) == 1:
            (models / NAMES[0]).write_text("longer than before")
        return content

    assert read_consistently(models.parent, read, NAMES) == ["longer than before", "old"]


def test_a_newer_set_is_read_in_its_place_and_its_end_is_noticed(models):
    newer = models / "next"
    newer.mkdir()
    write(newer, "new")
    assert read_consistently(models.parent, texts, NAMES) == ["new", "new"]
    calls = []

    def read(folder):
        calls.append(folder)
        if len(calls) == 1:  # as the publisher does
            write(models, "new")
            newer.rename(models / ".done")
        return texts(folder)

    assert read_consistently(models.parent, read, NAMES) == ["new", "new"]
    assert calls == [newer, models]


def test_a_newer_set_that_comes_while_the_older_one_is_read_is_read(models):
    def read(folder):
        content = texts(folder)
        if not (models / "next").is_dir():
            (models / "next").mkdir()
            write(models / "next", "new")
        return content

    assert read_consistently(models.parent, read, NAMES) == ["new", "new"]


def test_errors_of_unchanged_files_are_raised_at_once(models):
    calls = []

    def read(folder):
        calls.append(None)
        return (folder / "absent").read_text()

    with pytest.raises(FileNotFoundError):
        read_consistently(models.parent, read, NAMES)
    assert len(calls) == 1


def test_errors_of_files_that_were_replaced_meanwhile_are_not_raised(models):
    calls = []

    def read(folder):
        calls.append(None)
        if len(calls) == 1:
            write(models, "new")
            raise ValueError("the weights do not fit the configuration")
        return texts(folder)

    assert read_consistently(models.parent, read, NAMES) == ["new", "new"]


def test_files_that_change_at_every_attempt_are_one_line(models, monkeypatch):
    monkeypatch.setattr("monai_diffae.bundle.consistent_reading._LONGEST_PAUSE_S", 0)
    with pytest.raises(MachineError, match=r"its model was replaced during each of 20 attempts to read it; try again"):
        read_consistently(models.parent, lambda folder: write(models, "new"), NAMES)


def test_other_files_may_change(models):
    calls = []

    def read(folder):
        calls.append(None)
        (models / "checkpoint.pt").write_text("new")
        return texts(folder)

    assert read_consistently(models.parent, read, NAMES) == ["old", "old"]
    assert len(calls) == 1
