import numpy as np
import pytest

from monai_diffae.latents.probing.folds import Cases, choose_folds
from monai_diffae.latents.probing.nested import held_out


def cases(patients, splits=None):
    return Cases(np.arange(len(patients)), np.array([f"p{name}" for name in patients]), splits)


@pytest.mark.parametrize(("num_judged", "is_said"), [(9, True), (10, False)])
def test_numbers_of_few_judged_patients_are_said(caplog, num_judged, is_said):
    splits = np.array(["train"] * 20 + ["test"] * 2 * num_judged)
    patients = np.r_[np.arange(20), 20 + np.arange(2 * num_judged) // 2]
    choose_folds(cases(patients, splits), list(np.arange(len(patients)) * 1.0), "age", "split")
    assert ("target 'age': only 9 patients are judged; its scores say little" in caplog.text) == is_said


def test_folds_in_which_no_strength_can_be_chosen_are_said(caplog):
    patients = [*range(10, 25), 37, 37, 34, 37, 37, 37, 36, 35, 36]
    labels = ["a"] * 15 + list("bbabbbbba")  # the folds leave one of the three patients of b to train on
    chosen = choose_folds(cases(patients), labels, "kind")
    x = np.random.default_rng(0).normal(size=(24, 3))[chosen.target.rows]
    made = held_out([x] * 3, chosen.target, chosen.patients, chosen.folds, "linear")
    assert made.strengths.count(None) == 1
    assert "target 'kind': in 1 of 3 folds the training patients are too few to choose a strength" in caplog.text
    caplog.clear()
    choose_folds(cases(range(24)), labels, "kind")
    assert "to choose a strength" not in caplog.text
