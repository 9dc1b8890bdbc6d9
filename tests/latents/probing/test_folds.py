import numpy as np
import pytest

from monai_diffae.latents.probing.folds import ProbedCases, choose_folds
from monai_diffae.latents.probing.nested import predict_held_out


def cases(patients, splits=None):
    return ProbedCases(np.arange(len(patients)), np.array([f"p{name}" for name in patients]), splits)


@pytest.mark.parametrize(("num_test", "warns"), [(9, True), (10, False)])
def test_numbers_of_few_test_patients_are_warned_of(caplog, num_test, warns):
    splits = np.array(["train"] * 20 + ["test"] * 2 * num_test)
    patients = np.r_[np.arange(20), 20 + np.arange(2 * num_test) // 2]
    choose_folds(cases(patients, splits), list(np.arange(len(patients)) * 1.0), "age", "split")
    assert ("target 'age': there are only 9 test patients, so its scores are unreliable" in caplog.text) == warns


def test_folds_in_which_no_regularisation_can_be_chosen_are_warned_of(caplog):
    patients = [*range(10, 25), 37, 37, 34, 37, 37, 37, 36, 35, 36]
    labels = ["a"] * 15 + list("bbabbbbba")  # the folds leave one of the three patients of b to train on
    chosen = choose_folds(cases(patients), labels, "kind")
    x = np.random.default_rng(0).normal(size=(24, 3))[chosen.target.rows]
    predictions = predict_held_out([x] * 3, chosen.target, chosen.patients, chosen.folds, "linear")
    assert predictions.regularisation.count(None) == 1
    assert "target 'kind': 1 of 3 folds have too few training patients to choose a regularisation" in caplog.text
    caplog.clear()
    choose_folds(cases(range(24)), labels, "kind")
    assert "to choose a regularisation" not in caplog.text
