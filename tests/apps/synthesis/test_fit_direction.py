"""``fit-direction``, direction files, and ``predict`` along a direction."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from monai_diffae import edit, generate, predict
from monai_diffae.apps.synthesis.fit_direction import fit_direction, read_direction
from monai_diffae.data.embeddings import read_training_rows, z_matrix
from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.scores import score_with_interval


@pytest.fixture
def graded(labelled):
    """Predicts along a direction."""

    def run(embeddings, out, direction):
        return predict(labelled.bundle, embeddings, out, labelled=direction)

    return run


def test_only_training_cases_count(labelled, table, changed, tmp_path):
    elsewhere = table["split"] != "train"
    assert elsewhere.sum() >= 4
    swapped = table["wide"].where(~elsewhere, table["wide"].map({"yes": "no", "no": "yes"}))
    moved = table["z_000"].where(~elsewhere, 99).astype(np.float32)
    fit_direction(changed(wide=swapped, z_000=moved), tmp_path / "same.json", target="wide")
    assert (tmp_path / "same.json").read_bytes() == labelled.direction.read_bytes()
    # ... and those of training do
    turned = table["wide"].map({"yes": "no", "no": "yes"})
    other = fit_direction(changed("turned", wide=turned), tmp_path / "other.json", target="wide").direction
    assert other.weight @ read_direction(labelled.direction).weight < 0
    assert len(read_training_rows(labelled.embeddings)) == (~elsewhere).sum()


def test_another_file_is_not_overwritten_unasked_and_what_is_no_direction_never(labelled, changed, tmp_path):
    path = tmp_path / "d.json"
    fit_direction(labelled.embeddings, path, target="wide")
    fit_direction(labelled.embeddings, path, target="wide")  # the same again
    with pytest.raises(ConfigError, match="^d.json: exists and is not this direction; set overwrite"):
        fit_direction(labelled.embeddings, path, target="tilt")
    assert fit_direction(labelled.embeddings, path, target="tilt", overwrite=True).direction.target == "tilt"
    record = changed("embeddings").with_suffix(".json")
    content = record.read_text()
    with pytest.raises(ConfigError, match=r"^embeddings\.json: exists and is not this direction; choose"):
        fit_direction(labelled.embeddings, record, target="wide", overwrite=True)
    assert record.read_text() == content


def test_a_direction_that_is_damaged_or_of_another_model_is_one_line(labelled, latent_bundle, graded, tmp_path):
    whole = labelled.direction.read_text()
    other = json.dumps({**json.loads(whole), "model": "0" * 64})
    for name, content, message in (
        ("half", whole[:100], "half.json: "),
        ("no", None, "no.json: there is no such file; make it with monai-diffae fit-direction"),
        ("other", other, "(direction 'wide': was fitted to|labelled: other.json is of) another model"),
    ):
        options = {"direction": tmp_path / f"{name}.json"}
        if content is not None:
            options["direction"].write_text(content)
        for use in (
            lambda options=options: graded(labelled.embeddings, tmp_path / "out", options["direction"]),
            lambda options=options: edit(labelled.bundle, labelled.cohort, tmp_path / "out", **options, device="cpu"),
            lambda options=options: generate(latent_bundle, tmp_path / "out", **options, device="cpu"),
        ):
            with pytest.raises(ConfigError, match=f"^{message}"):
                use()
    assert not list(tmp_path.glob("out*"))


def test_a_complete_result_is_kept_and_only_overwrite_replaces_it(labelled, changed, graded, tmp_path):
    options = tmp_path / "out", labelled.direction
    first, again = (graded(labelled.embeddings, *options) for _ in range(2))
    assert (first.skipped, again.skipped, again.scores) == (False, True, first.scores)
    with pytest.raises(ConfigError, match="made with other"):
        graded(changed("more", tilt=0.0), *options)


def test_distances_are_in_standard_deviations_and_probabilities_of_two_classes(labelled, table, graded, tmp_path):
    rows = pd.read_csv(graded(labelled.embeddings, tmp_path / "out", labelled.direction).predictions)
    assert list(rows) == ["id", *(f"wide{end}" for end in ("", "_no", "_yes", "_distance", "_doubt"))]
    direction = read_direction(labelled.direction)
    np.testing.assert_allclose(rows["wide_distance"], direction.distance(z_matrix(table)) / direction.std)
    np.testing.assert_allclose(rows["wide_yes"], direction.predict(z_matrix(table)))
    assert rows["wide_distance"][table["split"] == "train"].std(ddof=0) == pytest.approx(1)
    assert ((rows["wide"] == "yes") == (rows["wide_yes"] > 0.5)).all()
    labelled = rows["wide_doubt"].fillna("").str.startswith("is a labelled scan")
    assert (labelled == (table["split"] == "train")).all()


def test_new_cases_of_other_patients_are_scored(labelled, table, changed, graded, tmp_path):
    result = graded(labelled.embeddings, tmp_path / "out", labelled.direction)
    direction, measured = read_direction(labelled.direction), result.measured["wide"]
    assert (result.scores["wide"]["score"], result.scores["wide"]["low"]) == (direction.score, direction.low)
    is_new = (table["split"] != "train").to_numpy()
    distance = pd.read_csv(result.predictions)["wide_distance"][is_new]
    assert measured["score"] == pytest.approx(roc_auc_score(table["wide"][is_new] == "yes", distance))
    assert measured["low"] <= measured["score"] <= measured["high"]
    assert (measured["metric"], measured["num_cases"]) == ("auroc", is_new.sum())
    # other cases of a patient that the direction was fitted to are not scored
    patient = table["patient"].mask(table["split"] == "test", table["patient"][~is_new].iloc[0])
    fewer = graded(changed(patient=patient), tmp_path / "p", labelled.direction).measured["wide"]
    assert fewer["num_cases"] == (table["split"] == "val").sum()


def test_folds_and_intervals_are_over_patients(table, changed, graded, tmp_path):
    patients = np.arange(len(table)) // 2
    pairs = changed(patient=[f"p{i}" for i in patients], split="train")
    direction = fit_direction(pairs, tmp_path / "large.json", target="ventricles").direction
    of_cases = fit_direction(changed("cases", split="train"), tmp_path / "c.json", target="ventricles").direction
    assert direction.score != of_cases.score
    others = changed("new", patient=[f"p{i}" for i in patients], z_000=table["z_000"] + 3)
    result = graded(others, tmp_path / "out", tmp_path / "large.json")
    rows = pd.read_csv(result.predictions).assign(truth=table["ventricles"].to_numpy(), patient=patients)
    rows = rows.sort_values("id")
    values, measured = (rows["truth"], rows["ventricles"]), result.measured["ventricles"]
    assert (measured["metric"], measured["score"]) == ("r2", pytest.approx(r2_score(*values)))
    low, high = score_with_interval("r2", *values, rows["patient"].to_numpy())[1:]
    assert (measured["low"], measured["high"]) == pytest.approx((low, high))
    assert (low, high) != score_with_interval("r2", *values)[1:]


def test_labels_may_be_missing_absent_unknown_or_of_one_class(labelled, table, changed, graded, tmp_path):
    wide = table["wide"].where(table["split"] != "val", "yes")
    test_rows = wide.index[table["split"] == "test"]
    wide[test_rows] = None
    wide[test_rows[:2]] = [" ", "perhaps"]
    result = graded(changed(wide=wide), tmp_path / "one", labelled.direction)
    assert (result.measured, result.num_cases) == ({}, len(table))
    path = changed("without")
    pd.read_parquet(path).drop(columns="wide").to_parquet(path)
    assert graded(path, tmp_path / "none", labelled.direction).measured == {}
