import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation.neighbors import TrainingCases, neighbors
from monai_diffae.errors import CohortError, ConfigError

RECORD = {"command": "embed", "complete": True, "figures": {}, "files": {}}


@pytest.fixture
def table():
    """200 cases, two per patient, whose z_sem is random."""
    z = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    columns = {
        "id": [f"c{i:03d}" for i in range(200)], "patient": [f"p{i // 2:03d}" for i in range(200)],
        "split": ["train"] * 140 + ["val"] * 40 + ["test"] * 20, "rank": range(200), "site": ["a", "b"] * 100,
    }  # fmt: skip
    return pd.DataFrame({**columns, **{f"z_{i:03d}": z[:, i] for i in range(6)}})


@pytest.fixture
def write(tmp_path):
    def to_file(table, name="e", model="m"):
        path = tmp_path / f"{name}.parquet"
        table.to_parquet(path, index=False)
        path.with_suffix(".json").write_text(json.dumps(RECORD | {"made_from": {"model": model}}))
        return path

    return to_file


def z_of(table):
    return table.filter(regex=r"z_\d+").to_numpy(np.float64)


def test_neighbors_are_those_of_a_plain_search_in_the_training_cases_units(table, write, tmp_path):
    table["z_000"] *= 1000
    neighbors(write(table), tmp_path / "o", k=3, cases=["c150", "c003"])
    table_of_neighbors = pd.read_csv(tmp_path / "o" / "neighbors.csv")
    z = z_of(table) / z_of(table)[:140].std(axis=0)
    assert table_of_neighbors["id"].tolist() == ["c150"] * 3 + ["c003"] * 3
    for case, rows in table_of_neighbors.groupby("id"):
        i = int(case[1:])
        distances = np.linalg.norm(z - z[i], axis=1)
        distances[(table["patient"] == table["patient"][i]).to_numpy()] = np.inf
        nearest = np.argsort(distances)[:3]
        assert rows["neighbor"].tolist() == table["id"][nearest].tolist()
        np.testing.assert_allclose(rows["distance"], distances[nearest], rtol=1e-5)
        assert rows["rank"].tolist() == [1, 2, 3]
        assert rows["label_rank"].tolist() == [i] * 3
        assert rows["neighbor_site"].tolist() == table["site"][nearest].tolist()


def test_principal_components_keep_their_relative_sizes(table, write, tmp_path):
    """Standardised, the last components, which are noise, would count as much as the first."""
    table["z_000"] = np.repeat(100 * np.random.default_rng(1).normal(size=100), 2)
    table.attrs["monai_diffae"] = {"made_from": {"encoder": "pca"}}
    neighbors(write(table), tmp_path / "o", k=1)
    nearest = pd.read_csv(tmp_path / "o" / "neighbors.csv").merge(table, on="id")
    other = table.set_index("id").loc[nearest["neighbor"], "z_000"].to_numpy()
    first = table["z_000"].drop_duplicates().to_numpy()
    closest = np.sort(np.abs(first[:, None] - first), axis=1)[:, 1].repeat(2)
    assert np.median(np.abs(nearest["z_000"] - other) - closest) < 1
    outliers = pd.read_csv(tmp_path / "o" / "outliers.csv")
    assert np.corrcoef(np.abs(table["z_000"]), outliers["distance"])[0, 1] > 0.5


def test_the_same_patient_is_excluded_unless_asked_for(table, write, tmp_path):
    table.loc[1::2, "z_000":] = table.loc[::2, "z_000":].to_numpy()
    options = {"k": 1, "cases": ["c010"]}
    neighbors(write(table), tmp_path / "others", **options)
    neighbors(tmp_path / "e.parquet", tmp_path / "all", **options, same_patient=True)
    others, everyone = (pd.read_csv(tmp_path / name / "neighbors.csv") for name in ("others", "all"))
    assert everyone["neighbor"].tolist() == ["c011"]
    assert everyone["distance"].tolist() == [0]
    assert others["neighbor"].item() not in ("c010", "c011")
    assert neighbors(tmp_path / "e.parquet", tmp_path / "others", **options).skipped
    for other in ({"k": 2}, {"same_patient": True}):
        with pytest.raises(ConfigError, match=f"made with other {next(iter(other))}"):
            neighbors(tmp_path / "e.parquet", tmp_path / "others", **{**options, **other})


def test_whitened_scores_detect_a_case_in_an_empty_direction_and_stay_calibrated(table, write, tmp_path):
    """z_sem varies in three directions of six; one case lies in a fourth, no further out than the others."""
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    z = rng.normal(size=(200, 3)) @ axes[:3] + 0.01 * rng.normal(size=(200, 6))
    z[199] = axes[3]
    table.loc[:, "z_000":] = z.astype(np.float32)
    result = neighbors(write(table), tmp_path / "o")
    odd = pd.read_csv(tmp_path / "o" / "outliers.csv").set_index("id").loc["c199"]
    assert odd["p_whitened"] == pytest.approx(1 / 141)
    assert odd["p_distance"] > odd["p_whitened"]
    assert result.unusual_shares["whitened"]["val"] < 0.2


def test_queries_of_another_table(table, write, tmp_path):
    path = write(table)
    new = table.iloc[:2].assign(id=["n1", "c003"], patient=["n1", "n2"]).drop(columns=["split", "site"])
    new.loc[1, "z_000":] = -40.0
    result = neighbors(path, tmp_path / "o", queries=write(new, "new"))
    outliers = pd.read_csv(tmp_path / "o" / "outliers.csv")
    assert outliers["split"].tolist() == ["queries"] * 2
    assert outliers["p_distance"][1] == pytest.approx(1 / 141)
    assert result.unusual_shares["distance"]["queries"] == 0.5
    neighbor_table = pd.read_csv(tmp_path / "o" / "neighbors.csv")
    assert neighbor_table["neighbor"][0] == "c000"
    assert neighbor_table["distance"][0] == 0
    with pytest.raises(ConfigError, match=r"^queries: other\.parquet was made with another model"):
        neighbors(path, tmp_path / "p", queries=write(new, "other", model="another"))


@pytest.mark.goal(id="R24")
def test_queries_with_other_patient_keys_or_preprocessing_are_warned_of(table, write, tmp_path, caplog):
    own = {"percentiles": [0.5, 99.5], "preprocessing": "@percentiles"}
    table.attrs["monai_diffae"] = {"patient_key": "one", "preprocessing": own}
    path, new = write(table), table.iloc[:2].copy()
    neighbors(path, tmp_path / "same", queries=write(new, "same"))
    neighbors(path, tmp_path / "synthetic", queries=write(new.drop(columns="patient"), "synthetic"))
    assert "different" not in caplog.text
    new.attrs["monai_diffae"] = {"patient_key": "other", "preprocessing": {**own, "percentiles": [20, 60]}}
    neighbors(path, tmp_path / "other", queries=write(new, "other"))
    assert "other.parquet and e.parquet hide their patients with different keys" in caplog.text
    assert "other.parquet and e.parquet were made with different preprocessing (percentiles)" in caplog.text


def test_wrong_arguments_are_one_line(table, write, tmp_path):
    path = write(table)
    for options, text in (
        ({"cases": ["c1"]}, "^cases: the table has no case 'c1'"),
        ({"k": 139}, "^k: 139 is not from 1 to 126"),
        ({"reconstruction_error": True, "bundle": "b"}, "^cohort: .* give bundle and cohort"),
        ({"query_cohort": "other"}, "^query_cohort: applies to queries"),
    ):
        with pytest.raises((CohortError, ConfigError), match=text):
            neighbors(path, tmp_path / "o", **options)
    with pytest.raises(CohortError, match="no column id with a unique name for each case"):
        neighbors(write(table.assign(id="c")), tmp_path / "o")
    assert not (tmp_path / "o" / "neighbors.csv").exists()


def test_captions_are_drawn_only_if_they_are_asked_for(labelled, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("monai_diffae.pictures.draw_cells", lambda rows, path: drawn.append(rows) or path.touch())
    options = {"bundle": labelled.bundle, "cohort": labelled.cohort, "device": "cpu", "k": 2, "limit": 1}
    result = neighbors(labelled.embeddings, tmp_path / "plain", **options)
    neighbors(labelled.embeddings, tmp_path / "named", **options, captions=["id", "wide"])
    table = pd.read_csv(result.folder / "neighbors.csv")
    texts = [text for _, text in drawn[0][0]]
    assert texts == ["case 1", *(f"{distance:.3g}" for distance in table["distance"])]
    labels = [f"{table['id'][0]}\nwide {table['wide'][0]}"]
    labels += [f"{row.neighbor}\nwide {row.neighbor_wide}" for row in table.itertuples()]
    assert [text for _, text in drawn[1][0]] == [f"{text}\n{label}" for text, label in zip(texts, labels, strict=True)]


@pytest.mark.slow
def test_images_that_are_not_those_of_the_table_are_noticed(labelled, tmp_path, caplog):
    options = {"bundle": labelled.bundle, "device": "cpu", "k": 2, "limit": 1}
    neighbors(labelled.embeddings, tmp_path / "same", cohort=labelled.cohort, **options)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    cohort = pd.read_csv(labelled.cohort)
    Image.linear_gradient("L").resize((16, 16)).save(tmp_path / "other.png")
    cohort.loc[3, "image"] = str(tmp_path / "other.png")
    cohort.to_csv(tmp_path / "changed.csv", index=False)
    overrides = {"percentiles": [10, 90]}
    neighbors(labelled.embeddings, tmp_path / "o", cohort=tmp_path / "changed.csv", overrides=overrides, **options)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "images: the preprocessing of bundle differs from that of embeddings.parquet: percentiles",
        "images: changed.csv has changed since the table was made (its cases, splits or file sizes); an id may now "
        "belong to another image",
    ]


@pytest.mark.slow
def test_images_of_another_cohort_and_unreadable_scans(run, labelled, tmp_path):
    """Two pictures of noise, and one that has become unreadable."""
    rng = np.random.default_rng(0)
    for name in ("noise", "gone", "more"):
        Image.fromarray(rng.integers(256, size=(16, 16), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    new = tmp_path / "new.csv"
    pd.DataFrame({"image": ["noise.png", "gone.png", "more.png"], "id": ["noise", "gone", "more"]}).to_csv(new)
    queries = embed(labelled.bundle, new, tmp_path / "new", device="cpu").path
    (tmp_path / "gone.png").write_bytes(b"no scan")
    files = ["--queries", queries, "--bundle", labelled.bundle, "--cohort", labelled.cohort, "--query-cohort", new]
    more = ["--reconstruction-error", "--k", 3, "--steps", 2, "--device", "cpu"]
    code, _, error = run("-q", "neighbors", labelled.embeddings, tmp_path / "o", *files, *more)
    assert (code, error.splitlines()[-1]) == (3, "1 image could not be read: see neighbors_failures.csv")
    outliers = pd.read_csv(tmp_path / "o" / "outliers.csv")
    assert outliers["id"].tolist() == ["noise", "gone", "more"]
    assert outliers["mse_x_T"].isna().tolist() == [False, True, False]
    assert outliers["p_distance"].notna().all()
    assert pd.read_csv(tmp_path / "o" / "neighbors_failures.csv")["case_id"].tolist() == ["gone"]


def random_cases(generator, name, num, dims=128):
    z = pd.DataFrame(generator.normal(size=(num, dims)), columns=[f"z_{i:03d}" for i in range(dims)])
    return pd.concat([pd.DataFrame({"id": [f"{name}{i}" for i in range(num)]}), z], axis=1)


def test_a_whitened_score_depends_on_its_case_alone_and_is_in_units_without_its_patient():
    generator = np.random.default_rng(0)
    rows = random_cases(generator, "train", 60, 8).assign(patient=[f"p{i // 2}" for i in range(60)])
    training = TrainingCases.from_rows(rows)
    new = random_cases(generator, "new", 20, 8).assign(patient=[f"q{i}" for i in range(20)])
    together = training.distances(new, 3, True)
    np.testing.assert_allclose(training.distances(new[::-1], 3, True)[::-1], together, rtol=1e-12)
    np.testing.assert_allclose(training.distances(new[7:8], 3, True), together[7:8], rtol=1e-12)
    again = rows.assign(id=[f"again{i}" for i in range(60)])  # as queries: the same scans of the same patients
    np.testing.assert_array_equal(training.distances(again, 3, True), training.reference.own_distances(3, True))


def test_the_names_of_the_patients_and_the_order_of_the_table_change_no_score():
    generator = np.random.default_rng(0)
    rows = random_cases(generator, "train", 60, 8).assign(patient=[f"p{i // 2 * 7 % 30}" for i in range(60)])
    new = random_cases(generator, "new", 20, 8).assign(patient=[f"q{i // 2}" for i in range(20)])
    training = TrainingCases.from_rows(rows)
    hashes = generator.permutation(99).astype(str)
    renamed = {name: hashes[i] for i, name in enumerate([*rows["patient"].unique(), *new["patient"].unique()])}
    other = TrainingCases.from_rows(rows.assign(patient=rows["patient"].map(renamed)))
    np.testing.assert_array_equal(other.reference.own_distances(3, True), training.reference.own_distances(3, True))
    for queries in (new, rows):
        own = training.distances(queries, 3, True)
        renamed_queries = queries.assign(patient=queries["patient"].map(renamed))
        np.testing.assert_array_equal(other.distances(renamed_queries, 3, True), own)
    backwards = TrainingCases.from_rows(rows[::-1]).reference.own_distances(3, True)[::-1]
    np.testing.assert_allclose(backwards, training.reference.own_distances(3, True), rtol=1e-12)


def test_scores_compare_with_at_most_20000_training_cases_and_say_so(write, tmp_path, caplog):
    caplog.set_level("INFO")
    rows = random_cases(np.random.default_rng(0), "train", 20_001, 2).assign(split="train")
    neighbors(write(rows), tmp_path / "o", k=2, limit=3)
    assert "scores compare with 20000 of 20001 training cases" in caplog.text
    assert len(pd.read_csv(tmp_path / "o" / "outliers.csv")["p_distance"].dropna()) == 3
