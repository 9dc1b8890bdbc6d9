"""The commands ``associate`` and ``stability``."""

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monai_diffae import associate, stability
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.errors import CohortError, ConfigError


def cohort(num_patients=60, seed=0):
    """Embeddings of two scans per patient: component 1 goes with ``age``, component 2 with ``sex``."""
    rng, patients = np.random.default_rng(seed), np.repeat(np.arange(num_patients), 2)
    z = (rng.normal(size=(num_patients, 4))[patients] + 0.3 * rng.normal(size=(2 * num_patients, 4))) * [1, 0.8, 0.6, 0]
    age, sex = rng.uniform(40, 80, num_patients)[patients], rng.integers(2, size=num_patients)[patients]
    z[:, 0] += 0.15 * (age - 60)
    z[:, 1] += 2 * sex
    z = np.column_stack([z[:, 0] + 1e-9, z[:, 0] + 0.1 * rng.normal(size=len(z)), z[:, 1:]])
    table = pd.DataFrame(z.astype(np.float32), columns=[f"z_{i:03d}" for i in range(5)])
    return table.assign(
        id=[f"scan {i}" for i in range(len(z))], patient=[f"p{i}" for i in patients], split="train", age=age,
        sex=np.where(sex, "M", "F"), site=rng.choice(["x", "y z", "w"], num_patients)[patients],
        noise=rng.normal(size=len(z)), eid=1000 + patients, empty=None, same=7, years=age + 1,
        number=np.arange(len(z)), rare=np.where(patients < 6, "a", "b"), few=np.where(patients < 6, np.nan, age),
    )  # fmt: skip


@pytest.fixture
def written(tmp_path):
    def write(table, name="embeddings"):
        table.to_parquet(tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    return write


def test_planted_associations_are_found_and_cases_without_values_are_counted(written, tmp_path, caplog):
    table = cohort()
    table.loc[:9, "age"] = np.nan
    options = {"variables": ["age", "sex", "site", "noise", "empty", "same"], "components": 9}
    with caplog.at_level(logging.WARNING):
        found = associate(written(table), tmp_path / "a", **options)
    rows = pd.read_csv(found.folder / "associations.csv")
    assert set(rows["component"]) == {1, 2, 3, 4}  # one dimension is constant
    assert "only 4 components vary" in caplog.text
    best = rows.loc[rows.groupby("variable")["p"].idxmin()].set_index("variable")
    assert best.loc[["age", "sex"], "component"].tolist() == [1, 2]
    assert (best.loc[["age", "sex"], "q"] < 1e-4).all()
    assert (best.loc[["site", "noise"], "q"] > 0.01).all()
    assert (best["num_missing"]["age"], best["num_cases"]["age"], best["num_patients"]["age"]) == (10, 110, 55)
    assert best["contrast"][["sex", "site"]].tolist() == ["M - F", "3 classes"]
    assert np.isnan(best["effect"]["site"])
    assert found.omitted_variables.keys() == {"empty", "same"}
    assert found.incomplete == "2 variables omitted: empty, same"
    assert "decode my_bundle" in found.next[0]
    again = associate(written(table), tmp_path / "a", **options)
    assert (again.skipped, again.figures) == (True, found.figures)


def test_classes_of_few_patients_are_left_out_by_name_and_do_not_refuse_the_variable(written, tmp_path, caplog):
    table = cohort()
    table.loc[:1, "site"] = "one patient"
    table["small"] = table["patient"].where(table.index < 30)
    with caplog.at_level(logging.WARNING):
        found = associate(written(table), tmp_path / "a", variables=["site", "small"], components=2)
    assert "fewer than 5 patients" in found.omitted_variables["small"]
    assert "variable 'site': classes of fewer than 5 patients are left out: one patient" in caplog.text
    rows = pd.read_csv(found.folder / "associations.csv")
    assert (rows["contrast"].iloc[0], rows["num_missing"].iloc[0]) == ("3 classes", 2)
    assert rows["p"].notna().all()


@pytest.mark.parametrize(("options", "message"), [
    ({"covariates": ["years"], "variables": ["age"]}, "variables: none can be used; age: the variable is a combina"),
    ({"variables": ["age"], "covariates": ["age"]}, "covariates: 'age' is a variable, too"),
    ({"variables": ["weight"]}, "variables: there is no label column 'weight'; choose from: age, "),
    ({"variables": ["age"], "covariates": ["same"]}, "variables: none can be used; age: target 'same': 120 of 120"),
    ({"phenotypes": True, "iid": "name"}, "iid: the table has no column 'name'"),
    ({"phenotypes": True, "iid": "id"}, "iid: 120 values of 'id' have blanks"),
    ({"phenotypes": True, "iid": "sex"}, "iid: 'sex' has one name for several patients, 58 times"),
    ({"phenotypes": True, "iid": "number"}, "iid: 'number' has one patient for several names"),
    ({"variables": ["rare"], "covariates": ["few"]}, "variables: none can be used; rare: the variable is constant"),
])  # fmt: skip
def test_what_cannot_be_used_is_one_line(written, tmp_path, options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        associate(written(cohort()), tmp_path / "a", **options)


def test_logistic_regressions_point_the_same_way_and_name_separated_classes(written, tmp_path, caplog):
    pytest.importorskip("statsmodels")
    table = cohort()
    table["large"] = table["z_000"] > table["z_000"].median()
    options = {"variables": ["sex", "large"], "covariates": ["age"], "components": 3}
    linear = pd.read_csv(associate(written(table), tmp_path / "a", **options).folder / "associations.csv")
    with caplog.at_level(logging.WARNING):
        found = associate(written(table), tmp_path / "b", **options, logistic=True)
    rows = pd.read_csv(found.folder / "associations.csv")
    sex = rows["variable"] == "sex"
    assert (np.sign(rows["effect"]) == np.sign(linear["effect"]))[sex & (linear["p"] < 0.01)].all()
    assert rows.loc[sex, "q"].min() < 0.01
    assert rows["p"].isna().sum() == 1 == caplog.text.count("1 test without estimate")


def test_phenotypes_are_read_by_plink_and_regenie(written, tmp_path):
    table = cohort()
    table.loc[4:5, "eid"] = np.nan
    table.loc[0, "age"] = np.nan
    options = {"variables": ["sex"], "covariates": ["age", "site"], "phenotypes": True, "iid": "eid", "components": 2}
    first = associate(written(table), tmp_path / "first", **options).folder
    phenotypes, covariates = (
        pd.read_csv(first / name, sep="\t", dtype={"FID": str, "IID": str})
        for name in ("phenotypes.tsv", "phenotype_covariates.tsv")
    )
    assert [*phenotypes] == ["FID", "IID", "PC1", "PC2"]
    assert [*covariates] == ["FID", "IID", "age", "site_x", "site_y_z"]
    expected = [str(1000 + i) for i in range(60) if i != 2]
    assert phenotypes["IID"].tolist() == phenotypes["FID"].tolist() == covariates["IID"].tolist() == expected
    assert "1000\t1000\tNA\t" in (first / "phenotype_covariates.tsv").read_text()
    means = pd.read_csv(associate(written(table), tmp_path / "m", **options, scans="mean", rank_normal=True).folder
                        / "phenotypes.tsv", sep="\t")  # fmt: skip
    assert means["PC1"].mean() == pytest.approx(0, abs=1e-6)
    assert np.corrcoef(means["PC1"], phenotypes["PC1"])[0, 1] > 0.9


def test_the_survival_of_the_page_finds_a_planted_hazard(written, tmp_path, monkeypatch, capsys):
    pytest.importorskip("lifelines")
    monkeypatch.chdir(tmp_path)
    associate(written(cohort()), tmp_path / "gwas", variables=["sex"], phenotypes=True, iid="eid", components=2)
    people = pd.read_csv("gwas/phenotypes.tsv", sep="\t")
    risk = people["PC1"] / people["PC1"].std()
    time = np.random.default_rng(0).exponential(np.exp(-risk))
    follow_up = people[["IID"]].assign(months=time.clip(max=2), died=time < 2, age=50 + np.arange(len(time)) % 9)
    follow_up.to_csv("follow_up.csv", index=False)
    page = (Path(__file__).parents[3] / "docs" / "associate.md").read_text(encoding="utf-8").partition("## Survival")[2]
    exec(compile(re.findall(r"```python\n(.*?)```", page, flags=re.S)[0], "block", "exec"), {})
    coefficient = float(re.findall(r"^PC1 +(\S+)", capsys.readouterr().out, flags=re.M)[0])
    assert coefficient * people["PC1"].std() == pytest.approx(1, abs=0.5)


def test_significant_components_are_decoded(labelled, tmp_path):
    folder = shutil.copytree(labelled.embeddings.parent, tmp_path / "embedded")
    table = read_embeddings(labelled.embeddings)
    table.assign(size=table["z_000"]).to_parquet(folder / "embeddings.parquet")
    found = associate(folder / "embeddings.parquet", tmp_path / "a", variables=["size"], components=4,
                      bundle=labelled.bundle)  # fmt: skip
    numbers = pd.read_csv(tmp_path / "a" / "traversed" / "components.csv")["component"].tolist()
    assert numbers == sorted(found.figures["components"])
    assert (tmp_path / "a" / "traversed" / "components.png").is_file()


def test_the_same_codes_in_another_basis_are_shared(written, tmp_path, caplog):
    table, columns = cohort(), [f"z_{i:03d}" for i in range(5)]
    rng = np.random.default_rng(1)
    other = table.sample(frac=0.9, random_state=0)
    other[columns[:4]] = (other[columns[:4]] @ rng.normal(size=(4, 4))).to_numpy(np.float32)
    other["patient"] = [f"other hash {name}" for name in other["patient"]]
    with caplog.at_level(logging.WARNING):
        found = stability(written(table), tmp_path / "s", other=written(other, "other"), components=3)
    assert "embeddings.parquet: 12 cases not in the other table" in caplog.text
    assert found.num_unmatched == [12, 0]
    assert (found.first["shared"], found.first["total"]) == (3, 3)
    assert found.notes[0].startswith("3 of 3 components of the first model are shared")
    assert len(pd.read_csv(found.folder / "stability.csv")) == 6
    noise = table.assign(**{name: rng.normal(size=len(table)).astype(np.float32) for name in columns})
    found = stability(written(table), tmp_path / "n", other=written(noise, "noise"))
    assert found.first["shared"] == 0
    assert max(found.canonical) < 0.5


def test_tables_that_cannot_be_matched_are_refused(written, tmp_path):
    table = cohort()
    for other, message in (
        (table.assign(id=[f"other {i}" for i in range(len(table))]), "0 patients with the same ids"),
        (table.assign(id=["scan 0", *table["id"][:-1]]), "other.parquet: has no column id with a unique name"),
    ):
        with pytest.raises(CohortError, match=message):
            stability(written(table), tmp_path / "s", other=written(other, "other"))
