from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_diffae.data.cases import Case, as_labels, find_cases, safe_file_name, safe_file_names, safe_id
from monai_diffae.errors import CohortError


def cohort(*ids):
    return [Case(id, {"image": Path(f"{id}.nii")}, id) for id in ids]


def test_cases_come_in_the_order_of_the_ids_and_once():
    assert [case.id for case in find_cases(cohort("a", "b", "c"), ["c", "a", "c"])] == ["c", "a"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sub-4", "cases: the cohort has no 'sub-4'; did you mean 'sub-04'?"),
        ("zebra", "cases: the cohort has no 'zebra'; the table written by embed has all ids"),
        ("x" * 90, f"cases: the cohort has no '{'x' * 60}...'; the table written by embed has all ids"),
        ("long-" + "y" * 90, f"cases: the cohort has no 'long-{'y' * 55}...'; did you mean 'long-{'y' * 91}'?"),
    ],
)
def test_a_similar_id_is_suggested_if_there_is_one(name, message):
    with pytest.raises(CohortError) as caught:
        find_cases(cohort("sub-04", "sub-11", "long-" + "y" * 91), [name])
    assert str(caught.value) == message


def test_a_label_with_underscores_is_text():
    assert as_labels({"visit": ["01_02", "7"], "count": ["1", "2"]}) == {"visit": ["01_02", "7"], "count": [1, 2]}


@pytest.mark.parametrize("word", ["", " ", "NA", "N/A", "n/a", "NaN", "nan", "null"])
def test_a_word_for_a_missing_value_is_no_class(word):
    assert as_labels({"sex": ["F", word], "age": ["41", word]}) == {"sex": ["F", None], "age": [41, None]}


def test_none_is_a_class():
    assert as_labels({"drug": ["None", "aspirin"]}) == {"drug": ["None", "aspirin"]}


@pytest.mark.goal(id="R14")
@given(st.text(min_size=1), st.text(min_size=1))
def test_names_of_files_are_safe_and_as_unique_as_ids(first, second):
    names = [safe_file_name(first), safe_file_name(second)]
    assert all(safe_id(name) == name for name in names)
    assert (names[0] == names[1]) == (first == second)


def test_cases_are_found_by_id_and_by_the_name_of_their_files():
    """Tables and commands of earlier versions have names of files as ids."""
    case = Case("benign (1)", {"image": Path("a.png")}, "p", file_name="benign_1")
    assert find_cases([case], ["benign (1)", "benign_1"]) == [case]


def test_files_named_after_ids_with_a_suffix_have_it_once():
    ids = ["x.nii.gz", "y.png", "y.PNG", "z.dcm", ".png", "1.2.840"]
    names = safe_file_names(ids)
    assert names[0] == "x"
    assert names[3:] == ["z", "png", "1.2.840"]
    assert len(set(names)) == len(ids)
    assert safe_file_name("x.nii.gz").startswith("x-")  # x may be another case
