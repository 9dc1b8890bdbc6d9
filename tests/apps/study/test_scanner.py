"""``reliability``, ``harmonize`` and ``probe --nuisance`` on tables with planted effects of scanners."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from monai_diffae import fit_direction, harmonize, neighbors, probe, reliability
from monai_diffae.apps.evaluation.baselines import read_features, table_features
from monai_diffae.data.embeddings import has_common_scale, read_embeddings, read_metadata, z_matrix
from monai_diffae.errors import ConfigError


def planted(size=1.0, num_patients=80, dims=6, seed=0):
    """Three scanners, each patient on each: a variance of 1 is the patient, ``size ** 2`` the scanner, 1 neither."""
    generator = np.random.default_rng(seed)
    patients, scanners = np.repeat(np.arange(num_patients), 3), np.tile(np.arange(3), num_patients)
    own, offsets = generator.normal(size=(num_patients, dims)), generator.normal(size=(3, dims))
    offsets = size * (offsets - offsets.mean(axis=0)) / offsets.std(axis=0, ddof=1)
    z = own[patients] + offsets[scanners] + generator.normal(size=(len(patients), dims))
    columns = {
        "id": [f"c{i:04d}" for i in range(len(z))], "patient": [f"p{i:03d}" for i in patients],
        "split": np.where(patients % 2, "test", "train"), "scanner": np.array(list("ABC"))[scanners],
        "visit": scanners + 1, "age": 50 + 5 * own[patients, 0], "site": np.where(patients % 4 < 2, "x", "y"),
    }  # fmt: skip
    return pd.DataFrame({**columns, **{f"z_{i:03d}": z[:, i].astype(np.float32) for i in range(dims)}})


@pytest.fixture
def write(tmp_path):
    def to_file(table, name="e.parquet"):
        table.attrs["monai_diffae"] = {"made_from": {"model": "m" * 64, "pool": "none"}, "z_sem_usage": 2.0}
        table.to_parquet(tmp_path / name, index=False)
        return tmp_path / name

    return to_file


@pytest.mark.parametrize("size", [0, 0.5, 1.5])
def test_planted_shares_and_iccs_are_found(size, write, tmp_path):
    result = reliability(write(planted(size, num_patients=300)), tmp_path / "out", repeat="visit", scanner="scanner")
    total = 2 + size**2
    truth = {"patient": 1 / total, "scanner": size**2 / total, "rest": 1 / total}
    assert {name: row["share"] for name, row in result.shares.items()} == pytest.approx(truth, abs=0.05)
    assert result.median_icc2 == pytest.approx(1 / total, abs=0.05)
    assert result.median_icc3 == pytest.approx(0.5, abs=0.05)
    rows = pd.read_csv(tmp_path / "out" / "reliability.csv")
    assert rows["kind"].value_counts().to_dict() == {"dimension": 6, "component": 6}
    assert rows.filter(like="_share").sum(axis=1).to_numpy() == pytest.approx(1)
    assert (tmp_path / "out" / "reliability.png").is_file()
    again = reliability(tmp_path / "e.parquet", tmp_path / "out", repeat="visit", scanner="scanner")
    assert (again.skipped, again.notes) == (True, result.notes)


def test_scores_of_columns_and_constants_and_what_is_left_out(write, tmp_path, caplog):
    table = planted().assign(z_006=np.float32(1), report="text")
    table.loc[0, "visit"] = np.nan
    table.loc[3, "scanner"] = "NA"
    path, line = write(table), tmp_path / "line.json"
    fit_direction(path, line, target="age")
    result = reliability(path, tmp_path / "out", repeat="visit", scanner="scanner", scores=["age"], directions=[line])
    assert (result.num_omitted, result.num_scans, result.num_constant) == (2, 238, 2)
    assert (result.num_patients, result.num_compared) == (78, 234)
    assert "1 scan omitted: the column 'visit' is empty" in caplog.text
    rows = pd.read_csv(tmp_path / "out" / "reliability.csv").set_index("name")
    assert rows.loc["age", ["icc2", "patient_share"]].tolist() == pytest.approx([1, 1])
    assert 0.3 < rows.loc["line", "patient_share"] < 0.9
    assert rows.loc["z_006", ["icc2", "patient_share"]].isna().all()
    for scores, message in {"report": "has empty cells or text", "height": "there is no label column 'height'"}.items():
        with pytest.raises(ConfigError, match=message):
            reliability(tmp_path / "e.parquet", tmp_path / "other", repeat="visit", scores=[scores])


def test_after_harmonizing_the_scanner_cannot_be_told_and_the_label_stays(write, tmp_path):
    path, out = write(planted(1.5)), tmp_path / "even.parquet"
    result = harmonize(path, out, scanner="scanner", targets=["age"])
    before, after = result.scanners["before_linear"], result.scanners["after_linear"]
    assert before["low"] > 0.7
    assert after["low"] < result.scanners["chance"] < after["high"]
    (cost,) = result.costs
    assert cost["difference_high"] > 0
    table = read_embeddings(out)
    train = table["split"] == "train"
    means = table[train].groupby("scanner")[["z_000", "z_001"]].mean()
    assert np.ptp(means.to_numpy(), axis=0).max() < 0.1
    assert len(pd.read_csv(tmp_path / "even_costs.csv")) == 6
    assert harmonize(path, out, scanner="scanner", targets=["age"]).skipped
    stays = (table["split"] == "train") | (table["visit"] > 1)  # a case depends on itself and the training cases only
    changed = planted(1.5).assign(z_000=lambda rows: rows["z_000"].where(stays, 9))
    other = harmonize(write(changed, "c.parquet"), tmp_path / "other.parquet", scanner="scanner", targets=["age"])
    assert (z_matrix(read_embeddings(other.path)) == z_matrix(table)).all(axis=1).tolist() == stays.tolist()


def test_a_harmonized_table_says_so_and_is_neither_decoded_nor_mixed(write, tmp_path):
    path, out = write(planted().assign(x=0.0, y=0.0, thumbnail=b"")), tmp_path / "even.parquet"
    harmonize(path, out, scanner="scanner", protect=["age", "site"], targets=["age"])
    metadata = read_metadata(out)
    assert (metadata["harmonized"]["protect"], metadata["harmonized"]["method"]) == (["age", "site"], "CovBat")
    assert metadata["z_sem_usage"] == 2
    assert not {"x", "thumbnail"} & set(read_embeddings(out))
    (row,) = probe(out, targets=["age"], probes=["linear"]).rows
    assert row["features"] == "harmonized"
    assert neighbors(out, tmp_path / "near").num_cases == 240
    with pytest.raises(ConfigError, match=r"even.parquet: was harmonized, so it has no z_sem .*; use the table that"):
        fit_direction(out, tmp_path / "age.json", target="age")
    with pytest.raises(ConfigError):
        neighbors(out, tmp_path / "mixed", queries=path)
    with pytest.raises(ConfigError, match="choose another out"):
        harmonize(path, path, scanner="scanner")
    record = json.loads((tmp_path / "even.json").read_text())
    assert (record["made_from"]["encoder"], record["complete"]) == ("harmonized", True)


@pytest.mark.parametrize(("encoder", "keeps_scales"), [("pca", True), ("untrained", False)])
def test_probes_of_harmonized_codes_keep_their_scales_as_those_before(write, tmp_path, encoder, keeps_scales):
    path = write(planted().assign(z_000=lambda rows: rows["z_000"] / 1000))
    table = pd.read_parquet(path)
    table.attrs["monai_diffae"]["made_from"]["encoder"] = encoder
    table.to_parquet(path, index=False)
    twice = [path, tmp_path / "even.parquet", tmp_path / "again.parquet"]
    for source, out in pairwise(twice):
        (cost,) = harmonize(source, out, scanner="scanner", targets=["age"]).costs
        (row,) = probe(source, targets=["age"], probes=["linear"]).rows
        assert cost["before"] == pytest.approx(row["score"])
    for each in twice:
        table = read_embeddings(each)
        assert has_common_scale(table) == keeps_scales
        assert not table_features(table, "z").standardise
        assert not read_features("other", each, table, []).standardise


def test_cases_that_cannot_be_harmonized_are_listed_with_the_reason(write, tmp_path):
    table = planted()
    table.loc[[0, 4], "scanner"] = [None, "D"]  # D has a single training case
    table.loc[8, "site"] = "nan"
    table.loc[table.index[-1], "site"] = "z"  # a test case
    table["followed"] = table["age"].where(table["split"] == "test")
    targets = ["age", "followed"]
    result = harmonize(write(table), tmp_path / "even.parquet", scanner="scanner", protect=["site"], targets=targets)
    assert [cost["association"] is None for cost in result.costs] == [False, True]
    assert (result.num_omitted, result.num_cases) == (4, 236)
    assert result.incomplete == "4 cases omitted: see even_omitted.csv"
    assert set(pd.read_csv(tmp_path / "even_omitted.csv")["reason"]) == {
        "scanner is empty", "its scanner has fewer than 10 training cases", "site is empty",
        "no training case has its value of site",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scanner": "A"}, "all cases are of the scanner 'A'; there is nothing to harmonize"),
        ({"patient": lambda rows: rows["scanner"]}, "'A' has training cases of one patient, so harmonizing would"),
        ({"site": lambda rows: rows["scanner"]}, "protect: 'site' is associated with the scanner"),
        ({"twin": lambda rows: rows["site"]}, "the protected columns determine the scanner or each other"),
    ],
)
def test_designs_in_which_harmonizing_means_nothing_are_refused(change, message, write, tmp_path):
    path = write(planted().assign(**{"twin": lambda rows: rows["age"], **change}))
    with pytest.raises(ConfigError, match=message):
        harmonize(path, tmp_path / "even.parquet", scanner="scanner", protect=["site", "twin"])


def test_patients_of_one_scanner_or_on_both_sides_are_warned_of(write, tmp_path, caplog):
    table = planted(num_patients=40, dims=2).assign(patient=lambda rows: rows["patient"] + rows["scanner"])
    table.loc[:9, "split"] = "test"
    table["patient"] = table["patient"].where(table.index != 20, table["patient"].iloc[2])
    harmonize(write(table), tmp_path / "even.parquet", scanner="scanner", targets=["age"])
    assert "no patient was scanned on two scanners: differences between the patients" in caplog.text
    assert "1 patient with training and other cases" in caplog.text


def test_a_shortcut_fails_on_the_scanner_that_was_left_out(write, tmp_path):
    """Here the label is the patient for all scanners, but the shift of a scanner misleads a probe."""
    result = probe(write(planted(3.0)), tmp_path / "out", targets=["age"], probes=["linear"], nuisance="scanner",
                   skip_few_labels=True)  # fmt: skip
    age = next(row for row in result.rows if row["target"] == "age")
    assert age["nuisance_accuracy_low"] > 0.9
    assert age["nuisance_chance"] == pytest.approx(1 / 3)
    assert age["left_out_score"] < 0 < age["score"]
    assert age["left_out_change_high"] < 0
    rows = pd.read_csv(tmp_path / "out" / "left_out.csv")
    assert rows[rows["target"] == "age"][["left_out", "num_test"]].values.tolist() == [["A", 40], ["B", 40], ["C", 40]]


def test_without_an_effect_of_the_scanner_nothing_is_told_and_nothing_changes(write, caplog):
    table = planted(0.0).assign(sick=lambda rows: np.where(rows["scanner"] == "A", "yes", "no"))
    table.loc[1, "scanner"] = None
    age, sick = probe(write(table), targets=["age", "sick"], probes=["linear"], nuisance="scanner").rows
    assert age["nuisance_accuracy_low"] < 1 / 3 < age["nuisance_accuracy_high"]
    assert abs(age["left_out_change"]) < 0.15
    assert "1 case without 'scanner', not used" in caplog.text
    assert sick["left_out_score"] is None
    assert "without 'A' of the nuisance" in caplog.text


def confounded(share, num=240):
    """Two scanners that differ, whose patients are ill with this and the opposite frequency, without any effect."""
    generator = np.random.default_rng(0)
    scanners = np.arange(num) % 2
    ill = generator.random(num) < np.where(scanners, share, 1 - share)
    z = generator.normal(size=(num, 24)) + scanners[:, None] * generator.normal(size=24)
    ids = [f"c{i:03d}" for i in range(num)]
    columns = {"id": ids, "patient": ids, "scanner": np.array(["A", "B"])[scanners], "ill": ill}
    return pd.DataFrame({**columns, **{f"z_{i:03d}": z[:, i].astype(np.float32) for i in range(24)}})


def test_what_a_protected_label_of_the_scanner_shows_is_no_finding(write, tmp_path, caplog):
    path, out, copied = write(confounded(0.88, 120)), tmp_path / "even.parquet", tmp_path / "copied.parquet"
    (cost,) = harmonize(path, out, scanner="scanner", protect=["ill"]).costs
    assert 0.6 < cost["association"] < 0.8
    assert "'ill' is associated with the scanner (0." in caplog.text
    table = pd.read_parquet(out)
    table["z_000"] += 3 * table["ill"]
    table.assign(diagnosis=table["ill"], age=np.random.default_rng(1).normal(size=120)).to_parquet(copied, index=False)
    for name, is_predicted in {"ill": True, "diagnosis": True, "age": False}.items():
        (verdict,) = probe(copied, targets=[name], probes=["linear"]).verdicts
        assert ("effect of ill" in verdict["sentence"]) == is_predicted
        assert verdict["answer"] in ("unclear", "hardly")
    assert "was harmonized in one go, with the effect of ill" in caplog.text


@pytest.mark.parametrize("options", [{"harmonize": "scanner"}, {"nuisance": "scanner"}])
def test_a_label_that_only_goes_with_the_scanner_is_not_predicted(options, write):
    path = write(confounded(0.9, 80))
    assert probe(path, targets=["ill"], probes=["linear"]).verdicts[0]["answer"] == "predicts"
    assert probe(path, targets=["ill"], probes=["linear"], **options).verdicts[0]["answer"] in ("hardly", "unclear")


@pytest.mark.parametrize(("evaluation", "num_test"), [("split", 117), ("cv", 233)])
def test_harmonizing_inside_the_folds_finds_what_is_not_the_scanner(evaluation, num_test, write, tmp_path, caplog):
    table = planted(3.0)
    table.loc[0, "scanner"] = None
    table.loc[1:6, "scanner"] = "rare"
    options = {"targets": ["age"], "probes": ["linear"], "evaluation": evaluation}
    (row,) = probe(write(table), harmonize="scanner", **options).rows
    (raw,) = probe(tmp_path / "e.parquet", **options).rows
    assert (row["features"], row["num_test"]) == ("z_sem, harmonized", num_test)
    assert row["score"] > raw["score"] + 0.1
    assert "7 cases omitted, without 'scanner' or of one with fewer than 10 training cases" in caplog.text
    with pytest.raises(ConfigError, match="omit nuisance"):
        probe(tmp_path / "e.parquet", nuisance="scanner", harmonize="scanner")
    write(table.assign(scanner=table["patient"]))
    with pytest.raises(ConfigError, match="harmonize: "):
        probe(tmp_path / "e.parquet", harmonize="scanner", **options)
