import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from monai_diffae.apps.synthesis.edit import edit
from monai_diffae.apps.synthesis.fit_direction import fit_direction, grade, read_direction
from monai_diffae.apps.synthesis.generate import sample
from monai_diffae.data.embeddings import read_embeddings, training_codes, z_of
from monai_diffae.errors import CohortError, ConfigError


@pytest.fixture
def changed(labelled, tmp_path):
    """Writes the embeddings with other columns, as another table with its record."""

    def write(name="changed", **columns):
        path = tmp_path / f"{name}.parquet"
        read_embeddings(labelled.embeddings).assign(**columns).to_parquet(path)
        shutil.copy(labelled.embeddings.with_suffix(".json"), path.with_suffix(".json"))
        return path

    return write


@pytest.fixture(scope="module")
def table(labelled):
    return read_embeddings(labelled.embeddings)


def test_only_training_cases_count(labelled, table, changed, tmp_path):
    elsewhere = table["split"] != "train"
    assert elsewhere.sum() >= 4
    swapped = table["wide"].where(~elsewhere, table["wide"].map({"yes": "no", "no": "yes"}))
    moved = table["z_000"].where(~elsewhere, 99).astype(np.float32)
    fit_direction(changed(wide=swapped, z_000=moved), "wide", tmp_path / "same.json")
    assert (tmp_path / "same.json").read_bytes() == labelled.direction.read_bytes()
    # ... and those of training do
    turned = table["wide"].map({"yes": "no", "no": "yes"})
    other = fit_direction(changed("turned", wide=turned), "wide", tmp_path / "other.json")
    assert other.weight @ read_direction(labelled.direction).weight < 0
    assert len(training_codes(labelled.embeddings)) == (~elsewhere).sum()


def test_a_table_without_splits_counts_as_a_whole(table, changed, tmp_path):
    path = changed()
    pd.read_parquet(path).drop(columns="split").to_parquet(path)
    assert fit_direction(path, "wide", tmp_path / "d.json").num_cases == len(table)
    with pytest.raises(CohortError, match=r"^val\.parquet: the embeddings have no case of the split 'train'"):
        fit_direction(changed("val", split="val"), "wide", tmp_path / "d.json")


def test_cases_without_the_label_are_left_out_and_counted(table, changed, tmp_path, caplog):
    first = table.index[table["split"] == "train"][0]
    with caplog.at_level(logging.INFO, "monai_diffae"):
        direction = fit_direction(changed(wide=table["wide"].drop(first)), "wide", tmp_path / "d.json")
    assert (direction.num_left_out, direction.num_cases) == (1, (table["split"] == "train").sum() - 1)
    assert "1 cases without the label 'wide' were left out" in caplog.text
    assert read_direction(tmp_path / "d.json").to_json() == direction.to_json()


def test_what_is_no_label_is_one_line(changed, labelled, tmp_path):
    path = changed(one="same", text=[f"t{i}" for i in range(12)], **{"age (y)": 3.0})
    for target, message in {
        "one": "target 'one': .* all 'same'",
        "age (y)": r"target 'age \(y\)': .* all '3'",
        "text": "target 'text': is text of .* classes",
        "weight": "target: there is no label column 'weight'; choose from: .*wide",
        "split": "target: there is no label column 'split'",
        "z_000": "target: there is no label column 'z_000'",
    }.items():
        with pytest.raises(ConfigError, match=message) as caught:
            fit_direction(path, target, tmp_path / "d.json")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="d.csv: a direction is written as .json"):
        fit_direction(labelled.embeddings, "wide", tmp_path / "d.csv")
    assert not (tmp_path / "d.json").exists()


def test_another_file_is_not_overwritten_unasked(labelled, tmp_path):
    path = tmp_path / "d.json"
    fit_direction(labelled.embeddings, "wide", path)
    fit_direction(labelled.embeddings, "wide", path)  # the same again
    with pytest.raises(ConfigError, match="^d.json: is there already, with something else"):
        fit_direction(labelled.embeddings, "tilt", path)
    assert fit_direction(labelled.embeddings, "tilt", path, overwrite=True).target == "tilt"
    fit_direction(labelled.embeddings, "wide", path, overwrite=True)
    assert path.read_bytes() == labelled.direction.read_bytes()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_direction_is_never_overwritten(labelled, changed, tmp_path, overwrite):
    record = changed("embeddings").with_suffix(".json")
    for content in (record.read_text(), '{"half', "", "[1]"):
        record.write_text(content)
        with pytest.raises(
            ConfigError, match=r"^embeddings\.json: is there already, and is no direction; name another"
        ):
            fit_direction(labelled.embeddings, "wide", record, overwrite=overwrite)
        assert record.read_text() == content


@pytest.mark.parametrize("overwrite", [False, True])
def test_grades_replace_nothing_but_grades(labelled, changed, table, tmp_path, overwrite):
    embeddings = changed("embeddings")
    table.to_csv(tmp_path / "scans.csv", index=False)
    shutil.copy(labelled.direction, tmp_path / "wide.json")
    for name, there in {"embeddings": "embeddings.json", "scans": "scans.csv", "wide": "wide.json"}.items():
        before = (tmp_path / there).read_bytes()
        with pytest.raises(ConfigError, match=f"^{there}: is there already, and grade did not make it; name another"):
            grade(embeddings, labelled.direction, tmp_path / f"{name}.csv", overwrite=overwrite)
        assert (tmp_path / there).read_bytes() == before


def test_a_damaged_direction_is_one_line(labelled, tmp_path):
    whole = labelled.direction.read_text()
    for name, content in {
        "half": whole[:100],
        "empty": "",
        "list": "[1]",
        "lacks": json.dumps({**json.loads(whole), "weight": None}),
    }.items():
        (tmp_path / f"{name}.json").write_text(content)
        with pytest.raises(ConfigError, match=f"^{name}.json: ") as caught:
            read_direction(tmp_path / f"{name}.json")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"no\.json: there is no such file; make it with monai-diffae fit-direction"):
        read_direction(tmp_path / "no.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="^folder: is a folder; name the direction's file in it"):
        read_direction(tmp_path / "folder")


# -- through the command ----------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_with_a_target(run, table, changed, tmp_path):
    training = table.index[table["split"] == "train"]
    path = changed(one="same", gaps=table["wide"].mask(table.index.isin(training[:2])))
    fit = ["--quiet", "fit-direction", "--embeddings", path, "--out", tmp_path / "d.json", "--target"]
    code, _, error = run(*fit, "gone")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: target: there is no label column 'gone'; choose from: ")
    count = len(training)
    expected = f"error: target 'one': {count} of {count} cases have it, all 'same'; two classes or numbers that vary"
    assert run(*fit, "one")[::2] == (2, f"{expected} are needed\n")
    assert not (tmp_path / "d.json").exists()
    code, printed, _ = run(*fit, "gaps")
    assert code == 0
    assert f"{count - 2} training cases, 2 without the label left out\n" in printed
    assert json.loads(run(*fit, "gaps", "--json")[1])["num_left_out"] == 2


def test_a_folder_for_a_file_ends_with_2(run, labelled, tmp_path):
    (tmp_path / "folder").mkdir()
    for option in ("--embeddings", "--direction"):
        files = {"--embeddings": labelled.embeddings, "--direction": labelled.direction, option: tmp_path / "folder"}
        code, _, error = run("grade", *(word for pair in files.items() for word in pair), "--out", tmp_path / "g.csv")
        assert (code, error.count("\n")) == (2, 1)
        assert error.startswith("error: folder: is a folder; name the ")


# -- grading ----------------------------------------------------------------------------------------------------------


def test_grades_are_distances_in_standard_deviations(labelled, table, tmp_path):
    grade(labelled.embeddings, labelled.direction, tmp_path / "g.csv")
    graded = pd.read_csv(tmp_path / "g.csv")
    assert list(graded.columns) == ["id", "patient", "split", "distance", "prediction", "wide"]
    direction = read_direction(labelled.direction)
    np.testing.assert_allclose(graded["distance"], direction.distance(z_of(table)) / direction.spread)
    np.testing.assert_allclose(graded["prediction"], direction.predict(z_of(table)))
    assert graded["distance"][table["split"] == "train"].std(ddof=0) == pytest.approx(1)
    assert graded["wide"].tolist() == table["wide"].tolist()


def test_scores_are_scikit_learns_on_each_split(labelled, tmp_path):
    result = grade(labelled.embeddings, labelled.direction, tmp_path / "g.csv")
    graded = pd.read_csv(tmp_path / "g.csv")
    assert result.scores.keys() == {"train", "val", "test"}
    for split, rows in graded.groupby("split"):
        row = result.scores[split]
        assert row["score"] == pytest.approx(roc_auc_score(rows["wide"] == "yes", rows["distance"]))
        assert row["low"] <= row["score"] <= row["high"]
        assert (row["metric"], row["num_cases"]) == ("auroc", len(rows))
    fit_direction(labelled.embeddings, "ventricles", tmp_path / "large.json")
    row = grade(labelled.embeddings, tmp_path / "large.json", tmp_path / "v.csv").scores["test"]
    rows = pd.read_csv(tmp_path / "v.csv").query("split == 'test'")
    assert (row["metric"], row["score"]) == ("r2", pytest.approx(r2_score(rows["ventricles"], rows["prediction"])))


def test_a_second_call_skips_and_other_things_are_refused(labelled, tmp_path):
    out = tmp_path / "g.csv"
    first = grade(labelled.embeddings, labelled.direction, out)
    again = grade(labelled.embeddings, labelled.direction, out)
    assert (first.skipped, again.skipped) == (False, True)
    assert again.scores == first.scores
    fit_direction(labelled.embeddings, "tilt", tmp_path / "tilt.json")
    with pytest.raises(ConfigError, match="g.csv: is there already, made with other direction"):
        grade(labelled.embeddings, tmp_path / "tilt.json", out)
    assert "tilt" in pd.read_csv(grade(labelled.embeddings, tmp_path / "tilt.json", out, overwrite=True).path)
    with pytest.raises(ConfigError, match="g.txt: the grades are written as .csv"):
        grade(labelled.embeddings, labelled.direction, tmp_path / "g.txt")


def test_labels_may_be_missing_or_absent_or_of_one_class(labelled, table, changed, tmp_path):
    wide = table["wide"].copy()
    test_rows = wide.index[table["split"] == "test"]
    wide[test_rows[0]], wide[test_rows[1]] = None, " "
    wide[table["split"] == "val"] = "yes"
    result = grade(changed(wide=wide), labelled.direction, tmp_path / "g.csv")
    assert "val" not in result.scores
    assert result.scores["train"]["num_cases"] == (table["split"] == "train").sum()
    path = changed("without")
    pd.read_parquet(path).drop(columns="wide").to_parquet(path)
    result = grade(path, labelled.direction, tmp_path / "w.csv")
    assert result.scores == {}
    assert len(pd.read_csv(result.path)) == len(table)


def test_a_label_with_the_name_of_a_column_of_ours_does_not_replace_it(table, changed, tmp_path):
    path = changed(distance=table["wide"])
    fit_direction(path, "distance", tmp_path / "d.json")
    result = grade(path, tmp_path / "d.json", tmp_path / "g.csv")
    graded = pd.read_csv(result.path)
    direction = read_direction(tmp_path / "d.json")
    np.testing.assert_allclose(graded["distance"], direction.distance(z_of(table)) / direction.spread)
    assert graded["label_distance"].tolist() == table["wide"].tolist()
    assert result.scores.keys() == {"train", "val", "test"}


def other_model(changed, table, fault):
    """Embeddings of another model: z_sem of other statistics, or of another size."""
    path = changed("other", z_000=3 * table["z_000"] + 1)
    if fault == "size":
        pd.read_parquet(path).drop(columns="z_007").to_parquet(path)
    record = json.loads(path.with_suffix(".json").read_text())
    record["made_from"]["model"] = "0" * 64
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


@pytest.mark.parametrize("use", ["grade", "edit", "sample"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [("statistics", "was fitted to another model"), ("size", "is for z_sem of 7 numbers, this model has 8")],
)
def test_a_direction_of_another_model_is_refused(
    labelled, latent_bundle, table, changed, tmp_path, use, fault, message
):
    direction = tmp_path / "d.json"
    fitted = fit_direction(other_model(changed, table, fault), "wide", direction)
    own = read_direction(labelled.direction).statistics
    assert fitted.statistics.std[0] == pytest.approx(3 * own.std[0], rel=1e-4)
    uses = {
        "grade": lambda: grade(labelled.embeddings, direction, tmp_path / "out.csv"),
        "edit": lambda: edit(labelled.bundle, labelled.cohort, tmp_path / "out", direction=direction, device="cpu"),
        "sample": lambda: sample(latent_bundle, tmp_path / "out", direction=direction, device="cpu"),
    }
    with pytest.raises(ConfigError, match=f"^direction 'wide': {message}"):
        uses[use]()
    assert not list(tmp_path.glob("out*"))


def test_a_direction_fits_any_cohort_of_its_model(labelled, table, changed, tmp_path):
    part = changed("part", split=table["split"].where(table.index % 5 != 0, "val"))
    direction = fit_direction(part, "tilt", tmp_path / "tilt.json")
    assert not np.array_equal(direction.statistics.std, read_direction(labelled.direction).statistics.std)
    graded = pd.read_csv(grade(labelled.embeddings, tmp_path / "tilt.json", tmp_path / "g.csv").path)
    np.testing.assert_allclose(graded["prediction"], direction.predict(z_of(table)))


def test_cases_of_a_class_that_it_does_not_know_are_graded_and_not_scored(labelled, table, changed, tmp_path):
    odd = table["wide"].where(table.index != table.index[-1], "perhaps")
    result = grade(changed("three", wide=odd), labelled.direction, tmp_path / "grades.csv")
    assert len(pd.read_csv(tmp_path / "grades.csv")) == len(table)
    assert sum(row["num_cases"] for row in result.scores.values()) <= len(table) - 1
