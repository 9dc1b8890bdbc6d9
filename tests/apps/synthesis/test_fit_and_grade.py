"""The commands ``fit-direction`` and ``grade``, and direction files."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from monai_diffae import edit, generate, grade
from monai_diffae.apps.synthesis.fit_direction import fit_direction, read_direction
from monai_diffae.data.embeddings import read_training_rows, z_matrix
from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.scores import score_with_interval


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


def test_a_direction_that_is_damaged_or_of_another_model_is_one_line(labelled, latent_bundle, tmp_path):
    whole = labelled.direction.read_text()
    other = json.dumps({**json.loads(whole), "model": "0" * 64})
    for name, content, message in (
        ("half", whole[:100], "half.json: "),
        ("no", None, "no.json: there is no such file; make it with monai-diffae fit-direction"),
        ("other", other, "direction 'wide': was fitted to another model"),
    ):
        options = {"direction": tmp_path / f"{name}.json"}
        if content is not None:
            options["direction"].write_text(content)
        for use in (
            lambda options=options: grade(labelled.embeddings, tmp_path / "out.csv", **options),
            lambda options=options: edit(labelled.bundle, labelled.cohort, tmp_path / "out", **options, device="cpu"),
            lambda options=options: generate(latent_bundle, tmp_path / "out", **options, device="cpu"),
        ):
            with pytest.raises(ConfigError, match=f"^{message}"):
                use()
    assert not list(tmp_path.glob("out*"))


def test_grades_replace_grades_only_with_overwrite_and_nothing_else(labelled, changed, table, tmp_path):
    out, options = tmp_path / "g.csv", {"direction": labelled.direction}
    first = grade(labelled.embeddings, out, **options)
    again = grade(labelled.embeddings, out, **options)
    assert (first.skipped, again.skipped, again.scores) == (False, True, first.scores)
    embeddings = changed("embeddings")
    with pytest.raises(ConfigError, match="g.csv: exists and was made with other"):
        grade(changed("more", tilt=0.0), out, **options)
    table.to_csv(tmp_path / "scans.csv", index=False)
    for name, there in {"embeddings": "embeddings.json", "scans": "scans.csv"}.items():
        before = (tmp_path / there).read_bytes()
        with pytest.raises(ConfigError, match="was not written by grade; choose another|holds what embed made"):
            grade(embeddings, tmp_path / f"{name}.csv", **options, overwrite=True)
        assert (tmp_path / there).read_bytes() == before


def test_grades_are_distances_in_standard_deviations(labelled, table, tmp_path):
    grade(labelled.embeddings, tmp_path / "g.csv", direction=labelled.direction)
    graded = pd.read_csv(tmp_path / "g.csv")
    assert list(graded.columns) == ["id", "patient", "split", "distance", "prediction", "is_fitted", "wide"]
    direction = read_direction(labelled.direction)
    np.testing.assert_allclose(graded["distance"], direction.distance(z_matrix(table)) / direction.std)
    np.testing.assert_allclose(graded["prediction"], direction.predict(z_matrix(table)))
    assert graded["distance"][table["split"] == "train"].std(ddof=0) == pytest.approx(1)
    assert graded["wide"].tolist() == table["wide"].tolist()
    assert graded["is_fitted"].tolist() == (table["split"] == "train").tolist()


def test_scores_of_grades_are_scikit_learns_on_each_split_not_fitted(run, labelled, table, changed, tmp_path, caplog):
    result = grade(labelled.embeddings, tmp_path / "g.csv", direction=labelled.direction)
    graded, direction = pd.read_csv(tmp_path / "g.csv"), read_direction(labelled.direction)
    assert result.scores.keys() == {"fitted", "val", "test"}
    for split, rows in graded[~graded["is_fitted"]].groupby("split"):
        row = result.scores[split]
        assert row["score"] == pytest.approx(roc_auc_score(rows["wide"] == "yes", rows["distance"]))
        assert row["low"] <= row["score"] <= row["high"]
        assert (row["metric"], row["num_cases"]) == ("auroc", len(rows))
    # the training cases: in cross-validation
    row = result.scores["fitted"]
    assert (row["score"], row["low"], row["high"]) == (direction.score, direction.low, direction.high)
    printed = run("--quiet", "grade", labelled.embeddings, tmp_path / "g.csv", "--direction", labelled.direction)[1]
    assert printed.startswith("cases that the direction was fitted to, in cross-validation: auroc ")
    # other cases of a patient that was fitted to are not scored, and training cases of another cohort are
    patient = table["patient"].mask(table["split"] == "test", table["patient"][table["split"] == "train"].iloc[0])
    assert grade(changed(patient=patient), tmp_path / "p.csv", direction=labelled.direction).scores.keys() == {
        "fitted", "val"
    }  # fmt: skip
    other = changed("other", z_000=table["z_000"] + 3)
    assert "grade other patients" not in caplog.text
    assert grade(other, tmp_path / "o.csv", direction=labelled.direction).scores.keys() == {"train", "val", "test"}
    assert "grade other patients" in caplog.text


def test_folds_and_intervals_are_over_patients(table, changed, tmp_path):
    pairs = changed(patient=[f"p{i // 2}" for i in range(len(table))], split="train")
    direction = fit_direction(pairs, tmp_path / "large.json", target="ventricles").direction
    of_cases = fit_direction(changed("cases", split="train"), tmp_path / "c.json", target="ventricles").direction
    assert direction.score != of_cases.score
    others = changed("new", patient=[f"p{i // 2}" for i in range(len(table))], z_000=table["z_000"] + 3, split="test")
    row = grade(others, tmp_path / "v.csv", direction=tmp_path / "large.json").scores["test"]
    rows = pd.read_csv(tmp_path / "v.csv").sort_values("id")
    values = rows["ventricles"], rows["prediction"]
    assert (row["metric"], row["score"]) == ("r2", pytest.approx(r2_score(*values)))
    low, high = score_with_interval("r2", *values, np.arange(len(rows)) // 2)[1:]
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert (low, high) != score_with_interval("r2", *values)[1:]


def test_labels_may_be_missing_absent_unknown_or_of_one_class(labelled, table, changed, tmp_path):
    wide = table["wide"].copy()
    test_rows = wide.index[table["split"] == "test"]
    wide[test_rows[0]], wide[test_rows[1]] = None, " "
    wide[table["split"] == "val"] = "yes"
    wide[wide.index[table["split"] == "train"][0]] = "perhaps"
    result = grade(changed(wide=wide), tmp_path / "g.csv", direction=labelled.direction)
    assert "val" not in result.scores
    assert result.scores.keys() == {"fitted"}
    assert len(pd.read_csv(result.path)) == len(table)
    path = changed("without")
    pd.read_parquet(path).drop(columns="wide").to_parquet(path)
    result = grade(path, tmp_path / "w.csv", direction=labelled.direction)
    assert result.scores.keys() == {"fitted"}
    assert len(pd.read_csv(result.path)) == len(table)


def test_a_label_with_the_name_of_a_column_of_ours_does_not_replace_it(table, changed, tmp_path):
    path = changed(distance=table["wide"])
    fit_direction(path, tmp_path / "d.json", target="distance")
    result = grade(path, tmp_path / "g.csv", direction=tmp_path / "d.json")
    graded = pd.read_csv(result.path)
    direction = read_direction(tmp_path / "d.json")
    np.testing.assert_allclose(graded["distance"], direction.distance(z_matrix(table)) / direction.std)
    assert graded["label_distance"].tolist() == table["wide"].tolist()
    assert result.scores.keys() == {"fitted", "val", "test"}
