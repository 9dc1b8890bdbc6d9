import json

from monai_diffae.data.cases import Case
from monai_diffae.data.twin_reports import report_twins
from monai_diffae.data.twins import TwinGroup


def case(name, patient=None, split=None, **labels):
    return Case(name, {}, patient or name, split, labels)


def test_twins_of_one_patient_and_split_are_no_problem():
    report = report_twins([case("a", "p", "train"), case("b", "p", "train")], [TwinGroup((0, 1), is_identical=True)])
    assert [*report.problems()] == []
    assert report.groups == [["a", "b"]]
    assert [line.partition(":")[0] for line in report.lines()] == ["twins"]


def test_missing_labels_and_splits_contradict_nothing():
    cases = [case("a", split="train", ill=0), case("b", ill=None)]
    assert [*report_twins(cases, [TwinGroup((0, 1), is_identical=True)]).problems()] == []


def test_measurements_with_many_values_may_differ():
    cases = [case(str(i), age=i, ill=i % 2) for i in range(30)]
    report = report_twins(cases, [TwinGroup((3, 4), is_identical=False)])
    assert [pair.what for pair in report.contradictory] == ["ill"]


def test_a_long_list_shows_examples_and_json_shows_all():
    cases = [case(str(i), split="train" if i % 2 else "test") for i in range(20)]
    report = report_twins(cases, [TwinGroup((i, i + 1), is_identical=True) for i in range(0, 20, 2)])
    (line,) = report.problems()
    assert line.startswith("10 groups of twins in different splits: 0 (split test) and 1 (split train); ")
    assert "and 5 more" in line
    assert "--group-duplicates" in line
    assert len(json.loads(json.dumps(report.figures()))["separated"]) == 10


def test_without_twins_there_is_no_line():
    assert [*report_twins([case("a"), case("b")], []).lines()] == []
