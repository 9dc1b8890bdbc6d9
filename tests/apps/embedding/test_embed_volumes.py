"""Volumes in a 2D bundle, with one row per volume; and in a 3D bundle."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from monai_diffae import embed, train_latent
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.errors import ConfigError, OtherResultsError


def std_of(table):
    return table[[f"std_{i:03d}" for i in range(8)]].to_numpy()


def cohort_of(folder, volumes, labels=None):
    """Writes volumes ``{id: array}``, of 12 mm voxels, and their table."""
    for name, array in volumes.items():
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([12, 12, 12, 1])), folder / f"{name}.nii")
    table = pd.DataFrame({"image": [f"{name}.nii" for name in volumes], "id": list(volumes), "split": "train"})
    table.assign(**(labels or {})).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.fixture
def volumes():
    rng = np.random.default_rng(0)
    return {f"v{i}": rng.gamma(2, 50, size=(12, 12, 10 + i)) for i in range(5)}


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """The table of 16 virtual heads of 16 x 16 x 16."""
    folder = tmp_path_factory.mktemp("heads") / "cohort"
    return make_virtual_cohort(folder, num_patients=16, size=16, spatial_dims=3, val_fraction=0.2, test_fraction=0.2)


@pytest.fixture(scope="module")
def tables(labelled, heads, tmp_path_factory):
    """The heads embedded by slices, and pooled."""
    out = tmp_path_factory.mktemp("pooled")
    pools = ("none", "mean", "mean_std")
    return {p: embed(labelled.bundle, heads, out / p, pool=p, device="cpu").path for p in pools}


def test_the_table_has_one_row_per_volume_with_the_mean_of_its_slices(tables, heads):
    slices, pooled, cohort = read_embeddings(tables["none"]), read_embeddings(tables["mean"]), pd.read_csv(heads)
    assert pooled["id"].tolist() == cohort["id"].tolist()
    assert pooled["split"].tolist() == cohort["split"].tolist()
    np.testing.assert_array_equal(pooled["head_size"], cohort["head_size"])
    assert list(pooled.columns) == [*slices.columns[:8], "slices", *(f"z_{i:03d}" for i in range(8))]
    volume_ids = slices["id"].str.rsplit("_", n=1).str[0]
    for row, z in zip(pooled.itertuples(), z_matrix(pooled), strict=True):
        codes = z_matrix(slices)[volume_ids == row.id].astype(np.float64)
        assert row.slices == len(codes) == 3
        np.testing.assert_array_equal(z, codes.mean(axis=0).astype(np.float32))
        assert row.patient == slices["patient"][volume_ids == row.id].unique().item()


def test_whole_volumes_are_chosen_if_their_slices_are_pooled(tables, labelled, heads, tmp_path):
    ids = pd.read_csv(heads)["id"].tolist()
    for name, chosen in {"first": {"limit": 2}, "named": {"cases": [ids[5], ids[2]]}}.items():
        path = embed(labelled.bundle, heads, tmp_path / name, pool="mean", device="cpu", **chosen).path
        expected = read_embeddings(tables["mean"]).set_index("id").loc[chosen.get("cases", ids[:2])]
        np.testing.assert_array_equal(z_matrix(read_embeddings(path)), z_matrix(expected))


def test_mean_std_adds_the_standard_deviation_of_the_slices(tables):
    slices, mean, both = (read_embeddings(tables[name]) for name in ("none", "mean", "mean_std"))
    pd.testing.assert_frame_equal(both[mean.columns], mean, check_exact=True)
    codes = z_matrix(slices).astype(np.float64).reshape(len(mean), 3, 8)
    np.testing.assert_array_equal(std_of(both), codes.std(axis=1).astype(np.float32))
    assert std_of(both).min() > 0


def test_pictures_beside_volumes_are_rows_of_one_slice(labelled, volumes, tmp_path):
    cohort = cohort_of(tmp_path, volumes)
    picture = pd.read_csv(labelled.cohort).iloc[[0]][["image", "id"]].assign(split="train")
    pd.concat([pd.read_csv(cohort), picture]).to_csv(cohort, index=False)
    table = pd.read_parquet(embed(labelled.bundle, cohort, tmp_path / "o", pool="mean_std", device="cpu").path)
    assert table["slices"].tolist() == [2, 3, 2, 3, 3, 1]
    assert not std_of(table)[5].any()
    alone = read_embeddings(labelled.embeddings).set_index("id")
    np.testing.assert_array_equal(z_matrix(table)[5], z_matrix(alone.loc[picture["id"]])[0])


def test_pooled_z_sem_cannot_be_decoded_and_are_not_taken_for_those_of_slices(labelled, heads, tables, tmp_path):
    refused = (
        r"embeddings\.parquet: its z_sem are averages, which do not belong to single images; embed the cohort without "
        "pool"
    )
    with pytest.raises(ConfigError, match=refused):
        train_latent(labelled.bundle, embeddings=tables["mean_std"], out=tmp_path / "latent")
    with pytest.raises(OtherResultsError):
        embed(labelled.bundle, heads, tables["none"], pool="mean", device="cpu")
    assert embed(labelled.bundle, heads, tables["mean"], pool="mean", device="cpu").skipped
