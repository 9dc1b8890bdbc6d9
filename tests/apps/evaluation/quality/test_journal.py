import logging

import pytest

from monai_diffae.apps.evaluation.quality import journal as journal_module
from monai_diffae.apps.evaluation.quality.journal import Journal
from monai_diffae.apps.processes import Process


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


def share(journal, names):
    """Whether each row was measured now; and the rows."""
    shared = [journal.shared_rows({"case": name}, lambda name=name: [{"id": name}]) for name in names]
    return [measured for _, measured in shared], [row["id"] for rows, _ in shared for row in rows]


def test_each_process_measures_its_share_and_the_first_gets_all_rows(file):
    assert share(Journal(file, Process(1, 2)), "abcde") == ([False, True, False, True, False], ["b", "d"])
    first = Journal(file, Process(0, 2))
    assert share(first, "abcde") == ([True, False, True, False, True], ["a", "b", "c", "d", "e"])
    assert share(Journal(file), "abcde") == ([False] * 5, ["a", "b", "c", "d", "e"])  # a resumed run
    first.remove()
    assert list(file.parent.iterdir()) == []


def test_the_first_process_measures_what_another_one_does_not(file, monkeypatch, caplog):
    monkeypatch.setattr(journal_module, "_PATIENCE_S", 0.05)
    with caplog.at_level(logging.WARNING, logger="monai_diffae"):
        assert share(Journal(file, Process(0, 2)), "ab") == ([True, True], ["a", "b"])
    assert caplog.messages == ["rank 1 has not measured its batch; this process measures it"]
