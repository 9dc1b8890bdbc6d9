import numpy as np
import pandas as pd
import pytest

from monai_diffae.apps.probe import probe
from monai_diffae.errors import CohortError, ConfigError


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
    def to_file(table):
        table.to_parquet(tmp_path / "e.parquet", index=False)
        return tmp_path / "e.parquet"

    return to_file


def test_all_numeric_labels_that_vary_by_default(table, write):
    rows = probe(write(table))
    assert [(row["target"], row["metric"]) for row in rows] == [("age", "r2"), ("grade", "auroc")]
    assert all(row["score"] > 0.95 and (row["num_train"], row["num_test"]) == (150, 50) for row in rows)


def test_text_target_and_missing_values(table, write):
    table["sex"] = table["sex"].where(np.arange(200) % 10 != 1)
    (row,) = probe(write(table), "sex")
    assert row["metric"] == "auroc"
    assert row["num_train"] + row["num_test"] == 180


def test_without_a_split_patients_are_hashed_into_two_parts(table, write):
    table["patient"] = [f"{int(i) * 0x147AE14:08x}00000000" for i in range(200)]
    (row,) = probe(write(table.drop(columns="split")), ["age"])
    assert row["num_train"] + row["num_test"] == 200
    assert 30 < row["num_test"] < 90


def test_pca_baseline_has_as_many_dimensions(table, write):
    images = np.random.default_rng(1).normal(size=(200, 1, 5, 5))
    rows = probe(write(table), ["age"], images=images)
    assert [(row["features"], row["dims"]) for row in rows] == [("z_sem", 4), ("PCA of pixels", 4)]
    assert rows[1]["score"] < 0.3 < rows[0]["score"]


def test_errors_say_what_there_is(table, write, tmp_path):
    with pytest.raises(ConfigError, match="choose from: age, sex, grade, site"):
        probe(write(table), "ages")
    (tmp_path / "no.parquet").write_text("text")
    with pytest.raises(CohortError, match="not a Parquet table"):
        probe(tmp_path / "no.parquet")
    with pytest.raises(CohortError, match="no columns z_000"):
        probe(write(table[["id", "age"]]))
