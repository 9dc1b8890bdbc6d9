import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score, roc_auc_score

from monai_diffae.apps.evaluation.probe import probe
from monai_diffae.errors import CohortError, ConfigError, OtherResultsError
from monai_diffae.pictures.charts import predictions_and_truth


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    z = generator.normal(size=(200, 4)).astype(np.float32)
    columns = {
        "id": [f"c{i}" for i in range(200)],
        "patient": [f"{i * 21474836:016x}"[-16:] for i in range(200)],
        "split": np.where(np.arange(200) % 4 == 0, "test", "train"),
        "age": z[:, 0] * 10 + 50,
        "sex": np.where(z[:, 1] > 0, "F", "M"),
        "grade": (z[:, 2] > 0).astype(int),
        "site": 3,
    }
    return pd.DataFrame({**columns, **{f"z_{i:03d}": z[:, i] for i in range(4)}})


@pytest.fixture
def write(tmp_path):
    def to_file(table, name="e.parquet"):
        table.to_parquet(tmp_path / name, index=False)
        return tmp_path / name

    return to_file


LINEAR = {"probes": ["linear"]}


def test_numbers_and_classes_that_vary_are_targets_by_default_with_both_probes(table, write):
    rows = probe(write(table)).rows
    assert [(row["target"], row["metric"], row["probe"]) for row in rows] == [
        ("age", "r2", "linear"), ("age", "r2", "knn"), ("sex", "auroc", "linear"), ("sex", "auroc", "knn"),
        ("grade", "auroc", "linear"), ("grade", "auroc", "knn"),
    ]  # fmt: skip
    assert all((row["evaluation"], row["num_train"], row["num_test"]) == ("split", 150, 50) for row in rows)
    assert all(row["score"] > 0.95 for row in rows if row["probe"] == "linear")
    assert rows[2]["score"] == rows[2]["auroc"]
    assert rows[2]["auroc_low"] <= rows[2]["auroc"] <= rows[2]["auroc_high"]
    assert rows[0]["difference"] is None


def test_if_no_label_is_a_target_by_default_the_error_names_all_and_says_why(table, write):
    others = {"number": range(200), "patientID": np.arange(200) * 3, "report": [f"text {i}" for i in range(200)]}
    labels = table.drop(columns=["age", "sex", "grade"]).assign(**others, rare=["ill"] * 4 + ["well"] * 196)
    with pytest.raises(ConfigError) as caught:
        probe(write(labels))
    assert str(caught.value) == (
        "e.parquet: has no label to predict (site has one value, number is an id, patientID is an id, report is text "
        "with 200 values, rare lacks two classes with 5 cases); set targets, or embed a cohort with other labels"
    )
    with pytest.raises(ConfigError, match="has no label to predict; embed a cohort with labels"):
        probe(write(labels[["id", "z_000"]]))


def test_labels_that_are_no_targets_by_default_are_named(table, write, caplog):
    caplog.set_level("INFO", "monai_diffae")
    probe(write(table[["id", "z_000", "age"]].assign(report=[f"text {i}" for i in range(200)])), **LINEAR)
    assert "labels that are not predicted, unless targets names them: report is text with 200 values" in caplog.text


def test_without_a_split_or_with_few_test_cases_it_is_cross_validated(table, write, caplog):
    (row,) = probe(write(table.drop(columns="split")), targets=["age"], **LINEAR).rows
    assert (row["evaluation"], row["num_folds"], row["num_test"], row["num_train"]) == ("cv", 5, 200, 160)
    assert row["num_seen_by_autoencoder"] == 0
    table["split"] = np.where(np.arange(200) % 10 == 0, "test", "train")
    (row,) = probe(write(table), targets=["age"], **LINEAR).rows
    assert (row["evaluation"], row["num_seen_by_autoencoder"]) == ("cv", 180)
    assert "the autoencoder was trained on patients of 180 of the 200 test cases" in caplog.text
    (row,) = probe(write(table), targets=["age"], evaluation="split", **LINEAR).rows
    assert (row["evaluation"], row["num_test"]) == ("split", 20)
    table.loc[:30, "split"] = table.loc[:30, "split"].replace("train", "val")  # as drawn for the training
    (row,) = probe(write(table), targets=["age"], evaluation="split", **LINEAR).rows
    assert (row["num_train"], row["num_test"]) == (180, 20)


def test_what_is_known_of_the_training_follows_from_where_the_split_is_from(table, write, caplog):
    def probed(origin, **arguments):
        caplog.clear()
        table.attrs["monai_diffae"] = {"made_from": {}, "split_origin": origin}
        return probe(write(table), targets=["age"], **arguments, **LINEAR).rows[0]["num_seen_by_autoencoder"]

    assert probed("training", evaluation="cv") == 150
    assert "perhaps" not in caplog.text
    assert probed("given", evaluation="cv") == 150
    assert "perhaps the autoencoder was trained on patients of 150 of the 200 test cases" in caplog.text
    for arguments in ({"evaluation": "cv"}, {"evaluation": "split"}, {"splits": ["test"]}):
        assert probed("drawn", **arguments) is None
        (line,) = [record.getMessage() for record in caplog.records if "autoencoder" in record.getMessage()]
        assert "it is not known which cases the autoencoder was trained on" in line
        assert "set splits" not in line


@pytest.mark.slow
def test_a_class_that_is_rare_among_the_test_cases_is_cross_validated_with_a_warning(table, write, caplog):
    table["rare"] = np.where(np.arange(200) < 9, "ill", "well")
    table["rare"] = np.where(np.arange(200) > 197, "odd", table["rare"])
    (row,) = probe(write(table), targets=["rare"], **LINEAR).rows
    assert (row["evaluation"], row["small_classes"]) == ("cv", "ill: 9")
    assert "target 'rare': there are only 9 test patients of class 'ill', so its scores are unreliable" in caplog.text
    assert (row["num_test"], row["num_omitted"]) == (198, 2)
    assert "target 'rare': classes with too few patients are omitted: odd" in caplog.text


def test_a_patient_on_both_sides_is_refused_without_its_name(table, write):
    table.loc[:4, "patient"] = "Jane Doe"
    with pytest.raises(ConfigError, match="^evaluation: 1 patient with both training and test cases; give") as caught:
        probe(write(table), targets=["age"])
    assert "Jane" not in str(caught.value)
    (row,) = probe(write(table), targets=["age"], evaluation="cv", **LINEAR).rows
    assert (row["num_test"], row["num_patients"], row["num_seen_by_autoencoder"]) == (200, 196, 152)


@pytest.mark.slow
def test_the_order_of_the_rows_and_the_names_of_the_patients_change_nothing(table, write, tmp_path):
    """Each folder hashes patients with a key of its own."""
    generator, rows = np.random.default_rng(0), table[:60].copy()
    rows["age"] += generator.normal(size=60) * 10
    rows["patient"] = [f"{name:02d}" for name in np.arange(60) // 2 * 7 % 30]
    names = dict(zip(rows["patient"].unique(), generator.permutation(30).astype(str), strict=True))
    renamed = rows.assign(patient=rows["patient"].map(names))
    for each, name in ((rows, "a"), (rows.sample(frac=1, random_state=1), "shuffled"), (renamed, "renamed")):
        options = {"targets": ["age", "sex"], "evaluation": "cv", "out": tmp_path / name, **LINEAR}
        probe(write(each, f"{name}.parquet"), **options)
    for other in ("shuffled", "renamed"):
        for name in ("probes.csv", "few_labels.csv"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / other / name).read_bytes()
        first, second = (
            pd.read_parquet(tmp_path / each / "predictions.parquet").drop(columns="patient") for each in ("a", other)
        )
        pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_without_patients_each_case_is_one_with_a_warning(table, write, caplog):
    result = probe(write(table.drop(columns="patient")), targets=["age"], **LINEAR)
    (row,) = result.rows
    assert row["num_patients"] == row["num_test"]
    assert f"{row['num_test']} test cases" in result.verdicts[0]["sentence"]
    assert "each case counts as a patient of its own" in caplog.text
    table.loc[:9, "patient"] = None
    (row,) = probe(write(table), targets=["age"], evaluation="cv", **LINEAR).rows
    assert row["num_patients"] == 200


def test_images_as_a_baseline_become_as_many_components_as_z_sem_has(table, write):
    images = np.random.default_rng(1).normal(size=(200, 1, 5, 5))
    rows = probe(write(table), targets=["age"], baselines={"PCA of pixels": images}, **LINEAR).rows
    assert [(row["features"], row["dims"]) for row in rows] == [("z_sem", 4), ("PCA of pixels", 4)]
    assert rows[1]["difference"] == pytest.approx(rows[0]["score"] - rows[1]["score"])


def test_files_have_the_predictions_and_scores_that_are_sklearns(table, write, tmp_path):
    generator = np.random.default_rng(3)
    table = table.sample(100, random_state=0)
    table["stage"] = np.digitize(table["z_001"] + generator.normal(size=100), [-0.5, 0.7]).astype(str)
    table["age"] += generator.normal(size=100) * 10
    table["patient"] = [f"p{i // 2}" for i in range(100)]
    targets = ["age", "grade", "stage"]
    options = {"evaluation": "cv", "out": tmp_path / "o", "probes": ["knn"], "dpi": 30}
    rows = probe(write(table), targets=targets, **options).rows
    written = pd.read_csv(tmp_path / "o" / "probes.csv")
    assert written["score"].tolist() == pytest.approx([row["score"] for row in rows])
    predictions = pd.read_parquet(tmp_path / "o" / "predictions.parquet")
    assert Counter(predictions["target"]) == dict.fromkeys(targets, 100)
    for row in rows:
        made = predictions[predictions["target"] == row["target"]]
        assert sorted(made["id"]) == sorted(table["id"])
        assert made.groupby("patient")["fold"].nunique().max() == 1
        labels = table.set_index("id").loc[made["id"], row["target"]].tolist()
        if row["metric"] == "r2":
            np.testing.assert_allclose(made["true_value"], labels)
            error, baseline = (made["true_value"] - made[name] for name in ("predicted_value", "training_mean"))
            assert row["r2"] == pytest.approx(1 - (error**2).sum() / (baseline**2).sum())
            assert row["r2"] == pytest.approx(r2_score(made["true_value"], made["predicted_value"]), abs=0.03)
            assert row["mae"] == pytest.approx(mean_absolute_error(made["true_value"], made["predicted_value"]))
            continue
        assert made["truth"].tolist() == list(map(str, labels))
        scored = sorted(made["truth"].unique())[1:] if row["target"] == "grade" else sorted(made["truth"].unique())
        for score, name in ((roc_auc_score, "auroc"), (average_precision_score, "auprc")):
            each = [score(made["truth"] == label, made[f"ranking_{label}"]) for label in scored]
            assert row[name] == pytest.approx(np.mean(each))
    # the curve is that of the second class, also if another target has the same classes in another place
    for label, name in (("1", "0"), ("c", "b")):
        made = pd.DataFrame(
            {"truth": [label, name], f"probability_{label}": [0.7, 0.1], f"probability_{name}": [0.3, 0.9]}
        )
        assert [list(values) for values in predictions_and_truth(made)[:2]] == [[0.7, 0.1], [True, False]]
    few = pd.read_csv(tmp_path / "o" / "few_labels.csv")
    assert set(few["num_patients"]) == {10}  # 30 are more than half of the training patients
    assert (few["num_draws"] == 2).all()  # half of 3, as tests/conftest.py sets; the default is 20
    assert (few["low_quartile"] <= few["median"]).all()
    for picture in ("calibration.png", "few_labels.png"):
        assert Image.open(tmp_path / "o" / picture).width == 540  # 3 panels of 6 inches


def test_intervals_are_over_patients_not_scans(table, write):
    """Four copies of each scan are worth no more than one; if each were a patient, the interval would be half."""
    table["age"] += np.random.default_rng(3).normal(size=200) * 10
    copies = pd.concat([table.assign(id=table["id"] + f"_{i}") for i in range(4)], ignore_index=True)
    others = copies.assign(patient=[f"p{i}" for i in range(800)])
    widths = []
    for rows in (table, copies, others):
        (row,) = probe(write(rows), targets=["age"], evaluation="split", **LINEAR).rows
        widths.append(row["high"] - row["low"])
        assert row["num_patients"] == rows.loc[rows["split"] == "test", "patient"].nunique()
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert widths[2] < 0.7 * widths[1]


def test_the_score_over_the_regularisation_is_shown_and_the_regularisation_can_be_fixed(table, write, tmp_path):
    table["grade"] = (table["z_002"] + np.random.default_rng(3).normal(size=200) > 0).astype(int)
    options = {"dpi": 30, "skip_few_labels": True, **LINEAR}
    rows = probe(write(table), tmp_path / "cv", targets=["age", "grade"], evaluation="cv", **options).rows
    curves = pd.read_csv(tmp_path / "cv" / "regularisation.csv")
    for row, (_, curve) in zip(rows, curves.groupby("target"), strict=True):
        assert curve["num_folds_chosen"].sum() == 5
        assert curve["score"].max() + 1e-9 >= row["score"] >= curve["score"].min()
        assert not row["is_regularisation_fixed"]
    assert Image.open(tmp_path / "cv" / "regularisation.png").width == 360  # 2 panels
    (row,) = probe(write(table), tmp_path / "fixed", targets=["grade"], regularisation=0.0003, **options).rows
    assert (row["regularisation"], row["is_regularisation_fixed"]) == (pytest.approx(0.0003), True)
    curve = pd.read_csv(tmp_path / "fixed" / "regularisation.csv").set_index("regularisation")
    assert curve["num_folds_chosen"].idxmax() == 0.0003
    assert curve["score"][0.0003] == pytest.approx(row["score"])
    assert json.loads((tmp_path / "fixed" / "record.json").read_text())["made_from"]["regularisation"] == 0.0003
    assert probe(write(table), targets=["age"], regularisation=1e9, **LINEAR).rows[0]["r2"] < 0.01
    with pytest.raises(ConfigError, match="^regularisation: is C for classes and alpha for numbers; set targets"):
        probe(write(table), targets=["age", "grade"], regularisation=1.0)


def test_wide_features_and_embeddings_of_other_models_are_compared_without_their_labels(table, write, tmp_path, caplog):
    rng = np.random.default_rng(4)
    table["grade"] = (table["z_002"] + rng.normal(size=200) > 0).astype(int)
    wide = {f"w_{i:03d}": table[f"z_{i % 4:03d}"] * 10.0 ** -(i // 2) for i in range(6)}
    other = table[["id", "patient", "split", "age", "grade"]].assign(z_000=rng.normal(size=200), z_001=1.0)
    baselines = {"other": write(other[30:], "other.parquet"), "its_wide": tmp_path / "wide.csv"}
    other.drop(columns=["z_000", "z_001"]).assign(w_000=table["z_000"]).to_csv(baselines["its_wide"], index=False)
    file = write(table.assign(**wide))
    options = {"targets": ["grade"], "features": ["wide", "z"], "evaluation": "cv", **LINEAR}
    result = probe(file, baselines=baselines, together=["wide", "other"], **options)
    assert [(row["features"], row["dims"], row["num_test"]) for row in result.rows] == [
        ("wide", 6, 170), ("z_sem", 4, 170), ("other", 2, 170), ("its_wide", 1, 170), ("wide + other", 8, 170)
    ]  # fmt: skip
    assert "30 cases omitted, for which not all features are available" in caplog.text
    assert [row["score"] > 0.7 for row in result.rows] == [True, True, False, False, True]  # neither has seen the label
    assert result.rows[1]["difference"] == pytest.approx(result.rows[0]["score"] - result.rows[1]["score"])
    with pytest.raises(ConfigError, match="^together: 'planar' is not among the features and baselines: wide, z$"):
        probe(file, together=["planar"], **options)
    assert result.verdicts[0]["sentence"].startswith("wide predicts grade: AUROC")
    assert result.verdicts[0]["against"].startswith("z_sem: AUROC")
    assert {(row["features"], row["target"]) for row in probe(file, **LINEAR).rows} == {
        ("z_sem", "age"), ("z_sem", "sex"), ("z_sem", "grade")
    }  # fmt: skip
    with pytest.raises(CohortError, match="^features: the table has no columns w_000, ...; embed again"):
        probe(write(table), **options)


def test_results_of_other_probes_and_baselines_are_not_replaced(table, write, tmp_path):
    file, out = write(table), tmp_path / "o"
    probe(file, out, targets=["age"], **LINEAR)
    with pytest.raises(OtherResultsError):
        probe(file, out, targets=["age"])
    with pytest.raises(OtherResultsError):
        probe(file, out, targets=["age"], baselines={"noise": np.zeros((200, 2))}, **LINEAR)
    assert str(tmp_path) not in (out / "record.json").read_text()


def test_a_typing_error_in_a_target_is_warned_of(table, write, caplog):
    table.loc[[8, 13], "age"] = [99999.0, -999.0]
    assert probe(write(table), targets=["age"], **LINEAR).rows[0]["r2"] < 0
    assert [message for message in caplog.messages if "far" in message] == [
        "target 'age': 2 of 200 values are far from all others, such as 99999, and can dominate the scores; correct or "
        "empty them if they are errors or codes"
    ]


def test_features_that_determine_the_target_are_warned_of(table, write, tmp_path, caplog):
    table["age"] += np.random.default_rng(6).normal(size=200)
    clinic = np.c_[np.random.default_rng(5).normal(size=(200, 2)), table["age"].rank()]
    probe(write(table), targets=["age"], baselines={"clinic": clinic}, **LINEAR)
    assert "features 'clinic': number 3 determines the target 'age'; remove it if it was derived from" in caplog.text
    table.rename(columns={"age": "years"})[["id", "site", "years"]].to_csv(tmp_path / "clinic.csv", index=False)
    probe(write(table), targets=["age"], baselines={"clinic": tmp_path / "clinic.csv"}, **LINEAR)
    assert "features 'clinic': 'years' determines the target 'age'; remove it" in caplog.text


def test_what_cannot_be_probed_is_refused_in_one_line(table, write, tmp_path):
    file = write(table)
    for options, message in (
        ({"targets": ["age", "ages"]}, "^targets: there is no label column 'ages'.*choose from: age, sex, grade, site"),
        ({"targets": ["site"]}, "target 'site': .* cases have it, all '3'"),
        ({"baselines": {"short": np.zeros((3, 1))}}, "^short: has 3 rows for 200 cases"),
        ({"splits": ["val"]}, "no split 'val'; it has test, train"),
        ({"splits": ["test"], "evaluation": "split"}, "splits: applies to cross-validation"),
        ({"probes": []}, r"^probes: \[\] is too short; give at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            probe(file, **{"targets": ["age"], **options})
    (tmp_path / "no.parquet").write_text("text")
    with pytest.raises(CohortError, match="not a Parquet table"):
        probe(tmp_path / "no.parquet")


@pytest.fixture
def with_twins(table):
    """The table with ten more patients, whose z_sem are nearly those of training cases; half have another grade."""
    more = np.random.default_rng(1).normal(size=(len(table), 12)).astype(np.float32)
    table[[f"z_{i:03d}" for i in range(4, 16)]] = more
    twins = table[table["split"] == "train"].head(10).copy()
    twins["z_000"] += 0.001
    twins["id"], twins["patient"] = "twin_" + twins["id"], [f"twin {i}" for i in range(10)]
    twins["split"], twins["grade"] = "test", [grade ^ (i % 2) for i, grade in enumerate(twins["grade"])]
    return pd.concat([table, twins], ignore_index=True)


def test_twins_of_different_patients_are_listed(table, with_twins, write, caplog):
    result = probe(write(with_twins), targets=["grade"], evaluation="split", **LINEAR)
    lines = [record.message for record in caplog.records if "twins" in record.message or "same z_sem" in record.message]
    assert lines[0].startswith(
        "10 groups of cases of different patients with nearly the same z_sem, such as c1 = twin_c1;"
    )
    assert lines[1].startswith("5 pairs of twins with different labels: ")
    assert len(result.figures["twins"]["groups"]) == 10
    assert "Twins: 10 groups of cases of different patients" in result.figures["verdicts"][0]["sentence"]
    assert len(result.figures["twins"]["contradictory"]) == 5
    assert json.loads(json.dumps(result.figures)) == result.figures
    assert probe(write(table), targets=["age"], **LINEAR).figures["twins"]["groups"] == []


def test_grouped_twins_are_never_in_training_and_test(with_twins, write, tmp_path, caplog):
    options = {"targets": ["age"], "group_duplicates": True, **LINEAR}
    result = probe(write(with_twins), tmp_path / "out", **options)
    folds = pd.read_parquet(tmp_path / "out" / "predictions.parquet").set_index("id")["fold"]
    assert {row["evaluation"] for row in result.rows} == {"cv"}
    pairs = [name for name in with_twins["id"] if f"twin_{name}" in folds]
    assert len(pairs) == 10
    assert all(folds[f"twin_{name}"] == folds[name] for name in pairs)
    assert "same z_sem" not in caplog.text
    assert probe(write(with_twins), tmp_path / "out", **options).skipped
    with pytest.raises(ConfigError, match="10 patients with both training and test cases"):
        probe(write(with_twins), evaluation="split", **options)
