import pytest

from monai_diffae.apps.evaluation.quality.journal import Journal


@pytest.fixture
def file(tmp_path):
    return tmp_path / ".cache" / "rows.jsonl"


def measure(journal, key, value):
    return journal.rows({"case": key}, lambda: [{"id": key, "mse": value}])


def test_rows_are_measured_once(file):
    assert measure(Journal(file), "a", 1.0) == ([{"id": "a", "mse": 1.0}], True)
    again = Journal(file)
    assert measure(again, "a", 2.0) == ([{"id": "a", "mse": 1.0}], False)
    assert measure(again, "b", 3.0)[1]


def test_a_line_that_was_not_written_to_its_end_is_measured_again(file):
    journal = Journal(file)
    measure(journal, "a", 1.0)
    measure(journal, "b", 2.0)
    file.write_text(file.read_text()[:-5])
    resumed = Journal(file)
    assert measure(resumed, "a", 9.0)[0][0]["mse"] == 1.0
    assert measure(resumed, "b", 3.0) == ([{"id": "b", "mse": 3.0}], True)
    assert measure(Journal(file), "b", 4.0)[0][0]["mse"] == 3.0


def test_it_can_be_forgotten(file):
    journal = Journal(file)
    measure(journal, "a", 1.0)
    journal.remove()
    assert not file.exists()
    assert measure(journal, "a", 2.0) == ([{"id": "a", "mse": 2.0}], True)


def test_values_that_are_no_numbers_survive(file):
    measure(Journal(file), "a", float("inf"))
    assert measure(Journal(file), "a", 0.0)[0][0]["mse"] == float("inf")
