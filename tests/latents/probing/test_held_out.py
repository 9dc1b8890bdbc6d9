import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing import QuickProbe

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(300, 6)) * [1, 1, 1, 1, 1, 100]
NOISE = RNG.normal(size=300)
PATIENTS = np.arange(300) // 2
IS_TRAIN = np.arange(300) < 200
LABELS = {
    "number": list(Z[:, 0] + 0.5 * NOISE),
    "two": [("ill" if value else "well") for value in Z[:, 0] + 0.5 * NOISE > 0],
    "three": [str(value) for value in np.clip(np.round(Z[:, 0] + 0.5 * NOISE), -1, 1)],
}


def choose(labels, patients=PATIENTS):
    return QuickProbe.choose(labels, "a", patients, IS_TRAIN)


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_that_z_sem_holds_is_predicted_and_a_shuffled_one_is_not(kind):
    scores = choose(LABELS[kind]).scores(Z)
    shuffled = choose(list(np.random.default_rng(1).permutation(np.array(LABELS[kind], object)))).scores(Z)
    chance = {"number": (0, 0), "two": (0.5, 1 / 2), "three": (0.5, 1 / 3)}[kind]
    assert scores.low < scores.score < scores.high
    assert scores.score > 0.6 > shuffled.score
    assert shuffled.score == pytest.approx(chance[0], abs=0.25)
    assert shuffled.neighbors == pytest.approx(chance[1], abs=0.25)
    assert scores.neighbors > shuffled.neighbors + 0.1


def test_the_scores_are_scikit_learns():
    number, two = choose(LABELS["number"]), choose(LABELS["two"])
    truth, predicted = np.array(LABELS["number"])[200:], number._predicted(Z, 0)[:, 0]
    assert number.scores(Z).score == pytest.approx(r2_score(truth, predicted))
    expected = roc_auc_score(np.array(LABELS["two"])[200:] == "well", two._predicted(Z, 0)[:, 1])
    assert two.scores(Z).score == pytest.approx(expected)


def test_chance_does_not_depend_on_how_frequent_classes_are():
    rare = list(np.random.default_rng(2).permutation(["rare"] * 45 + ["frequent"] * 255))
    assert choose(rare).scores(Z).neighbors == pytest.approx(0.5, abs=0.1)


def test_the_same_z_sem_gives_the_same_scores_whatever_was_drawn_before():
    first = choose(LABELS["two"]).scores(Z)
    np.random.seed(5)
    assert choose(LABELS["two"]).scores(Z) == first


def test_a_z_sem_that_is_the_same_for_all_is_chance():
    scores = choose(LABELS["number"]).scores(np.ones((300, 4)))
    assert scores.score == pytest.approx(0, abs=0.05)
    assert scores.neighbors == 0


@pytest.mark.parametrize("labels", [["a"] * 300, [f"case {row}" for row in range(300)], [None] * 250 + list(range(50))])
def test_labels_that_cannot_be_probed_are_refused(labels):
    with pytest.raises(ConfigError, match="target 'a'"):
        choose(labels)


def test_fewer_than_ten_held_out_patients_say_nothing():
    labels = [None if 200 <= row < 282 else value for row, value in enumerate(LABELS["number"])]
    with pytest.raises(ConfigError, match="9 held-out patients are too few; at least 10 are needed"):
        choose(labels)
