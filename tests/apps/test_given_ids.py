"""Ids of a user's table stay as given in all results, and their files have safe names."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.evaluation.neighbors import neighbors
from monai_diffae.apps.synthesis.reconstruct import reconstruct
from monai_diffae.data.cohorts import fingerprint, read_cohort
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.errors import CohortError

IDS = ["benign (1)", "benign/2", "../étude 3", "plain"]


@pytest.fixture(scope="module")
def given_ids(tiny_bundle, tmp_path_factory):
    """The first virtual patients with ids that are not safe as file names."""
    with open(tiny_bundle.cohort, newline="") as stream:
        rows = list(csv.DictReader(stream))[: len(IDS)]
    table = tmp_path_factory.mktemp("ids") / "scans.csv"
    images = [str(tiny_bundle.cohort.parent / row["image"]) for row in rows]
    frame = pd.DataFrame({"image": images, "id": IDS, "split": ["train", "train", "val", "test"], "age": range(4)})
    frame.to_csv(table, index=False)
    return table


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_embeddings_can_be_joined_to_the_users_table(tiny_bundle, given_ids, tmp_path, suffix):
    result = embed(tiny_bundle.directory, given_ids, tmp_path / f"z.{suffix}", device="cpu")
    table = read_embeddings(result.path)
    assert table.merge(pd.read_csv(given_ids), on="id")["id"].tolist() == IDS
    assert table["file_name"].tolist() == [case.file_name for case in read_cohort(given_ids)]
    found = neighbors(result.path, tmp_path / "near", cases=["benign/2"], k=1)
    assert pd.read_csv(found.folder / "neighbors.csv")["id"].tolist() == ["benign/2"]


def test_files_have_safe_names(tiny_bundle, given_ids, tmp_path):
    reconstruct(tiny_bundle.directory, given_ids, tmp_path / "out", mode="z_sem", steps=2, device="cpu", split=None)
    images = sorted((tmp_path / "out").rglob("*.nii.gz"))
    assert sorted(file.name.removesuffix(".nii.gz") for file in images) == sorted(
        case.file_name for case in read_cohort(given_ids)
    )
    (table,) = (tmp_path / "out").glob("*.csv")
    assert pd.read_csv(table)["id"].tolist() == IDS


def test_the_fingerprint_is_that_of_earlier_versions(given_ids, tmp_path):
    """They had the names of files as ids."""
    frame, cases = pd.read_csv(given_ids), read_cohort(given_ids)
    frame.assign(id=[case.file_name for case in cases]).to_csv(tmp_path / "old.csv", index=False)
    assert fingerprint(read_cohort(tmp_path / "old.csv")) == fingerprint(cases)


def test_an_id_with_a_line_break_is_refused(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"...")
    (tmp_path / "scans.csv").write_text('image,id\na.png,"a\nb"\n')
    with pytest.raises(CohortError, match=r"the id 'a\\nb' has a line break"):
        read_cohort(tmp_path / "scans.csv")
