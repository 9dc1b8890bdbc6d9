"""Tables of embeddings: CSV and Parquet give the same rows, ids, labels and z."""

import numpy as np
import pandas as pd
import pytest
import torch

from monai_diffae.data.embeddings import EmbeddedCases, embeddings_fingerprint, label_columns, read_embeddings, z_matrix
from monai_diffae.engines import training_loader, validation_loader
from monai_diffae.errors import CohortError, ConfigError


@pytest.fixture
def table():
    z = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    columns = {
        "id": [f"{i:03d}" for i in range(20)],
        "patient": "0e1234567890abcd",
        "split": ["train"] * 14 + ["val"] * 6,
    }
    return pd.DataFrame({**columns, "age": 3, "z_score": 1.0, **{f"z_{i:03d}": z[:, i] for i in range(3)}})


def test_csv_and_parquet_give_the_same(table, tmp_path):
    words = ["None", "ill", "", "NA", "N/A", "n/a", "NaN", "nan", "null", None]
    site = ["001", "01", "1", "2"] * 5  # four codes, not three numbers
    table = table.assign(drug=words * 2, size=[1.5, None] * 10, site=site, id=["NA", "null", "None", *table["id"][3:]])
    table.to_parquet(tmp_path / "e.parquet", index=False)
    table.to_csv(tmp_path / "e.csv", index=False)
    parquet, csv = read_embeddings(tmp_path / "e.parquet"), read_embeddings(tmp_path / "e.csv")
    for read in (parquet, csv):
        assert read["drug"].dropna().tolist() == ["None", "ill"] * 2
        assert read["drug"].notna().tolist() == [True, True, *[False] * 8] * 2
        for column in ("id", "patient"):
            assert read[column].tolist() == table[column].tolist()
    for column in ("age", "size", "site"):
        pd.testing.assert_series_equal(csv[column], parquet[column])
    assert (z_matrix(csv) == z_matrix(parquet)).all()
    assert embeddings_fingerprint(csv) == embeddings_fingerprint(parquet)


def test_the_mark_of_twins_is_no_label_and_a_column_of_the_user_with_this_name_is(table, tmp_path):
    for values, labels in ((["group 1", None], ["age", "z_score"]), (["01", "1"], ["age", "z_score", "twins"])):
        marked = table.assign(twins=values * 10)
        marked.to_parquet(tmp_path / "e.parquet", index=False)
        marked.to_csv(tmp_path / "e.csv", index=False)
        for name in ("e.parquet", "e.csv"):
            read = read_embeddings(tmp_path / name)
            assert label_columns(read) == labels
            assert read["twins"].dropna().tolist() == marked["twins"].dropna().tolist()


def test_a_csv_whose_rows_are_longer_than_its_header_is_refused(tmp_path):
    (tmp_path / "e.csv").write_text("id,patient,label,z_000\na,p1,tumour, left,0.5\nb,p2,none, right,0.1\n")
    with pytest.raises(CohortError, match=r"^e\.csv: its rows have more cells than its header; write the table again"):
        read_embeddings(tmp_path / "e.csv")


def test_what_is_no_table_of_embeddings_is_refused_by_its_name(table, tmp_path):
    table.assign(z_001=np.nan).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(CohortError, match=r"^mine\.csv: .*have values that are not finite numbers; embed again"):
        read_embeddings(tmp_path / "mine.csv")
    for other in (table.drop(columns="z_001"), table[["id", "z_001", "z_000", "z_002"]]):
        other.to_parquet(tmp_path / "lost.parquet")
        with pytest.raises(CohortError, match="are incomplete or out of order"):
            read_embeddings(tmp_path / "lost.parquet")
    short = table.drop(columns="z_002")
    short.attrs = {"monai_diffae": {"z_channels": 3}}
    short.to_parquet(tmp_path / "short.parquet")
    with pytest.raises(CohortError):
        read_embeddings(tmp_path / "short.parquet")
    for record in ([1], "x", {"made_from": [1]}, {"made_from": {"overrides": 3}}, {"z_sem_usage": "x"}):
        table.attrs = {"monai_diffae": record}
        table.to_parquet(tmp_path / "odd.parquet")
        assert read_embeddings(tmp_path / "odd.parquet").attrs == {}
    for name, content, message in (
        ("e.csv", b"\xff\xfe\x00", "not a CSV"),
        ("e.parquet", b"id", "not a Parquet"),
        ("e.csv", b"id\n1\n", "no columns"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CohortError, match=message):
            read_embeddings(tmp_path / name)
    with pytest.raises(ConfigError, match="is a folder; give the table in it, such as embeddings.parquet"):
        read_embeddings(tmp_path)


def test_the_fingerprint_is_of_z_and_splits_only(table):
    assert embeddings_fingerprint(table.assign(age=4)) == embeddings_fingerprint(table)
    moved, other = table.copy(), table.copy()
    moved.loc[0, "split"] = "val"
    other.loc[0, "z_000"] += np.float32(1e-3)
    assert len({embeddings_fingerprint(t) for t in (table, moved, other)}) == 3


def test_items_are_the_rows_of_a_split_under_both_loaders(table):
    cases = EmbeddedCases(table, "train", transform=lambda z: z * 2)
    assert torch.equal(cases.z, torch.from_numpy(z_matrix(table)[:14] * 2))
    batch = next(iter(training_loader(cases, 4, seed=3)))
    assert torch.equal(batch["z"], cases.z[batch["index"]])
    assert batch["id"] == [f"{i:03d}" for i in batch["index"]]
    seen = [int(i) for batch in validation_loader(cases, 4) for i in batch["index"]]
    assert sorted(seen) == list(range(14))


def test_rows_that_occur_twice_are_warned_of(tmp_path, caplog):
    table = pd.DataFrame({"id": ["a", "b", "c"], "z_000": [1.0, 2.0, 3.0]})
    patches = table.assign(id="a", patch=[0, 1, 2])
    for name, each in {"plain": table, "patches": patches, "twice": pd.concat([table, table[:2]])}.items():
        each.to_parquet(tmp_path / f"{name}.parquet")
        read_embeddings(tmp_path / f"{name}.parquet")
    assert caplog.messages == [
        "twice.parquet: 2 rows with the id of another row, taken for further cases; keep one row per case"
    ]
