"""Which labels ``start`` predicts, and which cases it edits."""

from __future__ import annotations

import pandas as pd

from monai_diffae.apps.examples import find_examples, find_positive, find_targets


def table(**labels: list) -> pd.DataFrame:
    number = len(next(iter(labels.values())))
    return pd.DataFrame({"id": [f"c{i}" for i in range(number)], **labels, "z_000": 0.0})


def test_numbers_and_classes_are_targets_and_names_and_constants_are_not() -> None:
    ages = [float(20 + i) for i in range(20)]
    names = [f"person {i}" for i in range(20)]
    rare = ["common"] * 19 + ["rare"]
    sexes = ["F", "M"] * 10
    assert find_targets(table(name=names, age=ages, scanner=["A"] * 20, finding=rare, sex=sexes)) == ["age", "sex"]


def test_at_most_five_are_found_and_all_that_are_wanted_are_used() -> None:
    many = table(**{f"score_{i}": [float(j + i) for j in range(20)] for i in range(8)})
    assert find_targets(many) == [f"score_{i}" for i in range(5)]
    assert find_targets(many, ["score_7", "other"]) == ["score_7", "other"]


def test_missing_values_are_no_class() -> None:
    assert find_targets(table(sex=["F", None] * 10)) == []


def test_examples_are_held_out_cases_from_both_ends() -> None:
    frame = table(age=[float(i) for i in range(8)], split=["train"] * 3 + ["test"] * 4 + ["val"])
    assert find_examples(frame, "age", 4) == ["c3", "c6", "c4", "c5"]
    assert find_examples(frame, "age", 3) == ["c3", "c6", "c4"]
    assert find_examples(frame.drop(columns="split"), "age", 2) == ["c0", "c7"]


def test_with_fewer_cases_all_are_examples_once() -> None:
    frame = table(sex=["F", "M", "F"])
    assert sorted(find_examples(frame, "sex", 10)) == ["c0", "c1", "c2"]


def test_the_rarest_unusual_class_is_compared_with_the_rest() -> None:
    three = ["benign"] * 5 + ["malignant"] * 3 + ["normal"] * 2
    assert find_positive(table(finding=three), "finding") == "malignant"
    assert find_positive(table(finding=["abnormal", "normal", None]), "finding") == "abnormal"
    assert find_positive(table(sex=["F", "M"]), "sex") is None
    assert find_positive(table(grade=[1.0, 2.0, 3.0]), "grade") is None


def test_examples_of_a_class_alternate_with_the_rest() -> None:
    frame = table(finding=["x", "b", "normal", "b", "x"], split="test")
    assert find_examples(frame, "finding", 4) == ["c0", "c3", "c2", "c1"]
