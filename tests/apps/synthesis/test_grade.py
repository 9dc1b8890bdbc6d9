import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.synthesis.direction_files import read_direction
from monai_diffae.apps.synthesis.fit_direction import fit_direction
from monai_diffae.apps.synthesis.grade import grade
from monai_diffae.data.embeddings import z_matrix
from monai_diffae.errors import ConfigError


@pytest.mark.parametrize("overwrite", [False, True])
def test_grades_replace_nothing_but_grades(labelled, changed, table, tmp_path, overwrite):
    embeddings = changed("embeddings")
    table.to_csv(tmp_path / "scans.csv", index=False)
    shutil.copy(labelled.direction, tmp_path / "wide.json")
    for name, there in {"embeddings": "embeddings.json", "scans": "scans.csv", "wide": "wide.json"}.items():
        before = (tmp_path / there).read_bytes()
        with pytest.raises(ConfigError, match=f"^{there}: exists and was not written by grade; choose another"):
            grade(embeddings, tmp_path / f"{name}.csv", direction=labelled.direction, overwrite=overwrite)
        assert (tmp_path / there).read_bytes() == before


def test_a_folder_for_a_file_ends_with_2(run, labelled, tmp_path):
    (tmp_path / "folder").mkdir()
    for option in ("embeddings", "direction"):
        files = {"embeddings": labelled.embeddings, "direction": labelled.direction, option: tmp_path / "folder"}
        code, _, error = run("grade", files["embeddings"], tmp_path / "g.csv", "--direction", files["direction"])
        assert (code, error.count("\n")) == (2, 1)
        assert error.startswith("error: folder: is a folder; give the ")


def test_grades_are_distances_in_standard_deviations(labelled, table, tmp_path):
    grade(labelled.embeddings, tmp_path / "g.csv", direction=labelled.direction)
    graded = pd.read_csv(tmp_path / "g.csv")
    assert list(graded.columns) == ["id", "patient", "split", "distance", "prediction", "wide"]
    direction = read_direction(labelled.direction)
    np.testing.assert_allclose(graded["distance"], direction.distance(z_matrix(table)) / direction.std)
    np.testing.assert_allclose(graded["prediction"], direction.predict(z_matrix(table)))
    assert graded["distance"][table["split"] == "train"].std(ddof=0) == pytest.approx(1)
    assert graded["wide"].tolist() == table["wide"].tolist()


def test_scores_are_scikit_learns_on_each_split(labelled, tmp_path):
    result = grade(labelled.embeddings, tmp_path / "g.csv", direction=labelled.direction)
    graded = pd.read_csv(tmp_path / "g.csv")
    assert result.scores.keys() == {"train", "val", "test"}
    for split, rows in graded.groupby("split"):
        row = result.scores[split]
        assert row["score"] == pytest.approx(roc_auc_score(rows["wide"] == "yes", rows["distance"]))
        assert row["low"] <= row["score"] <= row["high"]
        assert (row["metric"], row["num_cases"]) == ("auroc", len(rows))
    fit_direction(labelled.embeddings, tmp_path / "large.json", target="ventricles")
    row = grade(labelled.embeddings, tmp_path / "v.csv", direction=tmp_path / "large.json").scores["test"]
    rows = pd.read_csv(tmp_path / "v.csv").query("split == 'test'")
    assert (row["metric"], row["score"]) == ("r2", pytest.approx(r2_score(rows["ventricles"], rows["prediction"])))


def test_a_second_call_skips_and_other_things_are_refused(labelled, tmp_path):
    out = tmp_path / "g.csv"
    first = grade(labelled.embeddings, out, direction=labelled.direction)
    again = grade(labelled.embeddings, out, direction=labelled.direction)
    assert (first.skipped, again.skipped) == (False, True)
    assert again.scores == first.scores
    fit_direction(labelled.embeddings, tmp_path / "tilt.json", target="tilt")
    with pytest.raises(ConfigError, match="g.csv: exists and was made with other direction"):
        grade(labelled.embeddings, out, direction=tmp_path / "tilt.json")
    assert "tilt" in pd.read_csv(grade(labelled.embeddings, out, direction=tmp_path / "tilt.json", overwrite=True).path)
    with pytest.raises(ConfigError, match="g.txt: grades are written as .csv"):
        grade(labelled.embeddings, tmp_path / "g.txt", direction=labelled.direction)


def test_labels_may_be_missing_or_absent_or_of_one_class(labelled, table, changed, tmp_path):
    wide = table["wide"].copy()
    test_rows = wide.index[table["split"] == "test"]
    wide[test_rows[0]], wide[test_rows[1]] = None, " "
    wide[table["split"] == "val"] = "yes"
    result = grade(changed(wide=wide), tmp_path / "g.csv", direction=labelled.direction)
    assert "val" not in result.scores
    assert result.scores["train"]["num_cases"] == (table["split"] == "train").sum()
    path = changed("without")
    pd.read_parquet(path).drop(columns="wide").to_parquet(path)
    result = grade(path, tmp_path / "w.csv", direction=labelled.direction)
    assert result.scores == {}
    assert len(pd.read_csv(result.path)) == len(table)


def test_a_label_with_the_name_of_a_column_of_ours_does_not_replace_it(table, changed, tmp_path):
    path = changed(distance=table["wide"])
    fit_direction(path, tmp_path / "d.json", target="distance")
    result = grade(path, tmp_path / "g.csv", direction=tmp_path / "d.json")
    graded = pd.read_csv(result.path)
    direction = read_direction(tmp_path / "d.json")
    np.testing.assert_allclose(graded["distance"], direction.distance(z_matrix(table)) / direction.std)
    assert graded["label_distance"].tolist() == table["wide"].tolist()
    assert result.scores.keys() == {"train", "val", "test"}


def test_a_direction_fits_any_cohort_of_its_model(labelled, table, changed, tmp_path):
    part = changed("part", split=table["split"].where(table.index % 5 != 0, "val"))
    direction = fit_direction(part, tmp_path / "tilt.json", target="tilt").direction
    assert not np.array_equal(direction.statistics.std, read_direction(labelled.direction).statistics.std)
    graded = pd.read_csv(grade(labelled.embeddings, tmp_path / "g.csv", direction=tmp_path / "tilt.json").path)
    np.testing.assert_allclose(graded["prediction"], direction.predict(z_matrix(table)))


@pytest.mark.goal(id="R24")
def test_z_sem_of_other_preprocessing_is_warned_of(labelled, table, tmp_path, caplog):
    """The weights of a direction's model are the same with all overrides, so its file names the preprocessing, too."""
    other = embed(labelled.bundle, labelled.cohort, tmp_path, overrides={"percentiles": [20, 60]}, device="cpu").path
    fit_direction(other, tmp_path / "d.json", target="wide")
    grade(labelled.embeddings, tmp_path / "g.csv", direction=labelled.direction)
    grade(other, tmp_path / "h.csv", direction=tmp_path / "d.json")
    assert "preprocessed" not in caplog.text
    line = "direction 'wide': was fitted to scans that were preprocessed in another way than here, so it does not fit"
    for embeddings, direction in ((other, labelled.direction), (labelled.embeddings, tmp_path / "d.json")):
        caplog.clear()
        grade(embeddings, tmp_path / "h.csv", direction=direction, overwrite=True)
        assert [message[: len(line)] for message in caplog.messages] == [line]
    content = json.loads((tmp_path / "d.json").read_text())
    del content["preprocessing"]  # as in older files
    (tmp_path / "d.json").write_text(json.dumps(content))
    caplog.clear()
    grade(labelled.embeddings, tmp_path / "h.csv", direction=tmp_path / "d.json", overwrite=True)
    assert not caplog.messages


def test_cases_of_a_class_that_it_does_not_know_are_graded_and_not_scored(labelled, table, changed, tmp_path):
    odd = table["wide"].where(table.index != table.index[-1], "perhaps")
    result = grade(changed("three", wide=odd), tmp_path / "grades.csv", direction=labelled.direction)
    assert len(pd.read_csv(tmp_path / "grades.csv")) == len(table)
    assert sum(row["num_cases"] for row in result.scores.values()) <= len(table) - 1
