"""The table that embed writes: rows, labels, metadata, and when it counts as complete (goals R5, R16 and R23)."""

import io
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_bundles import rewrite

from monai_diffae import embed, load_bundle, probe
from monai_diffae.apps.embedding.encoding import encode_stream
from monai_diffae.data.embeddings import label_columns, read_embeddings, split_origin, z_matrix
from monai_diffae.data.scans import write_scan
from monai_diffae.errors import CohortError, ConfigError


def z_table(path):
    table = pd.read_parquet(path).set_index("id")
    return table[[name for name in table.columns if name.startswith("z_")]].sort_index()


@pytest.fixture(scope="module")
def embedded(tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded")
    return embed(tiny_bundle.directory, tiny_bundle.cohort, out, device="cpu")


@pytest.fixture
def other_cohort(labelled, tmp_path):
    """Writes a changed copy of the cohort's table."""

    def write(change=lambda table: table):
        change(pd.read_csv(labelled.cohort)).to_csv(tmp_path / "other.csv", index=False)
        return tmp_path / "other.csv"

    return write


def test_every_case_has_a_row_with_labels_and_z_sem(embedded, tiny_bundle):
    table, cohort = pd.read_parquet(embedded.path), pd.read_csv(tiny_bundle.cohort)
    assert (embedded.num_cases, embedded.num_failed, embedded.skipped) == (12, 0, False)
    assert list(table.columns[:3]) == ["id", "patient", "split"]
    assert table["id"].tolist() == cohort["id"].tolist()
    assert table["split"].tolist() == cohort["split"].tolist()
    np.testing.assert_allclose(table["head_size"], cohort["head_size"])
    assert z_table(embedded.path).shape == (12, 8)
    assert z_table(embedded.path).dtypes.unique().tolist() == [np.float32]
    assert not embedded.path.with_name("failures.csv").exists()


def test_z_sem_is_that_of_the_inferer_for_each_case(labelled):
    trained, table = load_bundle(labelled.bundle, "cpu"), pd.read_parquet(labelled.embeddings)
    images = torch.stack(
        [trained.preprocessing({"image": file})["image"] for file in pd.read_csv(labelled.cohort).image]
    )
    expected = trained.inferer.encode(images.as_tensor(), trained.network)
    np.testing.assert_allclose(z_matrix(table), expected, rtol=1e-4, atol=1e-4)
    assert table["z_000"].nunique() == 12


def test_the_metadata_say_what_a_table_was_made_with(labelled):
    metadata = pd.read_parquet(labelled.embeddings).attrs["monai_diffae"]
    assert len(metadata["made_from"]["model"]) == 64
    assert {"monai_diffae", "monai", "torch"} <= metadata["versions"].keys()
    transforms = metadata["preprocessing"]["preprocessing"]["transforms"]
    assert transforms[0]["_target_"] == "monai_diffae.transforms.ReadScand"
    assert metadata["preprocessing"]["image_size"] == [16, 16]
    assert metadata["split_origin"] == "training"
    assert str(labelled.cohort.parent) not in str(metadata)


def test_a_csv_has_the_same_numbers_to_the_bit_and_its_suffix_may_be_in_capitals(labelled, tmp_path):
    made = embed(labelled.bundle, labelled.cohort, tmp_path / "Z.CSV", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".patient_key", "Z.CSV", "Z.json"]
    table = read_embeddings(made.path)
    assert split_origin(table) == "training"
    assert np.array_equal(z_matrix(table), z_matrix(read_embeddings(labelled.embeddings)))
    assert embed(labelled.bundle, labelled.cohort, tmp_path / "Z.CSV", device="cpu").skipped


def test_renamed_columns_and_labels_with_reserved_names(labelled, other_cohort, tmp_path):
    rename = {"image": "file", "id": "who", "head_size": "z_000"}
    cohort = other_cohort(lambda table: table.rename(columns=rename).assign(id="label", sex="F"))
    columns = {"image": "file", "id": "who"}
    table = pd.read_parquet(embed(labelled.bundle, cohort, tmp_path / "o", device="cpu", columns=columns).path)
    assert {"label_z_000", "label_id", "sex"} < set(table.columns)
    assert table["id"].tolist() == pd.read_csv(cohort)["who"].tolist()
    np.testing.assert_allclose(table["label_z_000"], pd.read_csv(cohort)["z_000"])
    assert table["z_000"].dtype == np.float32


def test_a_table_with_standard_names_needs_no_names_of_the_training_table(tiny_bundle, tmp_path):
    directory = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle")
    train = directory / "configs" / "train.json"
    train.write_text(json.dumps({**json.loads(train.read_text()), "columns": {"image": "file"}}))
    assert embed(directory, tiny_bundle.cohort, tmp_path / "o", device="cpu").num_cases == 12
    images = [str(tiny_bundle.cohort.parent / image) for image in pd.read_csv(tiny_bundle.cohort)["image"]]
    entries = [{"image": images[0]}, {"image": images[1], "grade": 2}]  # the first one lacks a label
    (tmp_path / "list.json").write_text(json.dumps({"test": entries}))
    table = read_embeddings(embed(directory, tmp_path / "list.json", tmp_path / "p", device="cpu").path)
    assert table["grade"].tolist()[1:] == [2]


# -- complete or not ---------------------------------------------------------------------------------------------------


def test_a_complete_table_is_skipped_and_one_that_was_made_with_something_else_refused(
    labelled, other_cohort, tmp_path
):
    bundle = shutil.copytree(labelled.bundle, tmp_path / "bundle")
    cohort, out = other_cohort(), tmp_path / "o"
    made = embed(bundle, cohort, out, device="cpu")
    content = made.path.read_bytes()

    def is_refused(other):
        with pytest.raises(ConfigError, match=rf"^embeddings\.parquet: exists and was made with other {other}; set ov"):
            embed(bundle, cohort, out, device="cpu")

    original = pd.read_csv(cohort)
    original[::-1].to_csv(cohort, index=False)
    is_refused("cases")
    original.assign(sex="F").to_csv(cohort, index=False)
    is_refused("labels")
    original.to_csv(cohort, index=False)
    rewrite(bundle, percentiles=[20, 80])
    is_refused("model")
    again = embed(labelled.bundle, cohort, out, device="cpu")
    assert (again.skipped, again.num_cases) == (True, 12)
    assert made.path.read_bytes() == content
    with pytest.raises(ConfigError, match="map_columns"):
        embed(labelled.bundle, cohort, out, map_columns=True, device="cpu")


def test_cases_and_colours_can_be_chosen_and_belong_to_what_the_table_was_made_from(labelled, tmp_path, caplog):
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3) if i % 2 else (16, 16), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"p{i}.png")
    cohort, options = tmp_path / "cohort.csv", {"bundle": labelled.bundle, "cohort": tmp_path / "cohort.csv"}
    pd.DataFrame({"image": [f"p{i}.png" for i in range(4)], "split": ["train"] * 3 + ["test"]}).to_csv(cohort)
    made = embed(**options, out=tmp_path / "o", split="train", limit=2, device="cpu")
    assert (made.num_cases, made.num_failed) == (1, 1)
    assert "set colour=grey, train on rgb, or convert it" in caplog.text
    again = {**options, "out": tmp_path / "o", "device": "cpu"}
    for other, what in (({"colour": "grey", "limit": 2}, "overrides"), ({"split": "test"}, "cases, labels")):
        with pytest.raises(ConfigError, match=f"was made with other {what}; set overwrite"):
            embed(**again, **other)
    embed(**again, colour="grey", cases=["p3", "p1"], overwrite=True)
    table = read_embeddings(made.path)
    assert table["id"].tolist() == ["p3", "p1"]
    whole = embed(**options, out=tmp_path / "whole", colour="grey", device="cpu")
    pd.testing.assert_frame_equal(z_table(made.path), z_table(whole.path).loc[["p1", "p3"]], check_exact=True)
    for wrong, message in (
        ({"colour": "rgb"}, "^colour: rgb has 3 channels, but in_channels is 1"),
        ({"split": "test", "map_columns": True}, "^map_columns: are computed from training cases"),
    ):
        with pytest.raises(ConfigError, match=message):
            embed(**options, out=tmp_path / "wrong", **wrong, device="cpu")


def test_an_overwrite_that_fails_leaves_the_old_result_and_its_record(labelled, tmp_path):
    made = embed(labelled.bundle, labelled.cohort, tmp_path / "o", device="cpu")
    before = made.path.with_suffix(".json").read_bytes(), made.path.read_bytes()
    (tmp_path / "broken.nii").write_bytes(b"no scan")
    with pytest.raises(CohortError):
        embed(labelled.bundle, tmp_path / "broken.nii", tmp_path / "o", device="cpu", overwrite=True)
    assert (made.path.with_suffix(".json").read_bytes(), made.path.read_bytes()) == before


def test_files_of_the_user_are_left_alone(tiny_bundle, tmp_path):
    (tmp_path / "failures.csv").write_text("mine")
    embed(tiny_bundle.directory, tiny_bundle.cohort, tmp_path, device="cpu")
    assert (tmp_path / "failures.csv").read_text() == "mine"
    (tmp_path / "z.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"z\.json: exists and is not a record of this package"):
        embed(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "z.parquet", device="cpu", overwrite=True)
    assert (tmp_path / "z.json").read_text() == "[]"


def noise(seed):
    return np.random.default_rng(seed).normal(size=(1, 16, 16, 1)).astype(np.float32)


@pytest.fixture
def scans(tmp_path):
    """The table of five uncompressed images, which always have the same size."""
    folder = tmp_path / "scans"
    for i in range(5):
        write_scan(folder / f"s{i}.nii", noise(i), np.eye(4))
    split = ["train"] * 4 + ["test"]
    pd.DataFrame({"image": [f"s{i}.nii" for i in range(5)], "split": split}).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.fixture
def embed_scans(labelled, scans, tmp_path):
    """Embeds them to ``tmp_path / "z"``."""
    return lambda **options: embed(labelled.bundle, scans, tmp_path / "z", device="cpu", **options)


@pytest.mark.goal(id="R5")
def test_a_scan_that_was_replaced_by_one_of_the_same_size_is_noticed_and_a_copied_one_is_the_same(scans, embed_scans):
    made = embed_scans()
    old, record = pd.read_parquet(made.path), made.path.with_suffix(".json")
    before = json.loads(record.read_text())["scans"]
    os.utime(scans.parent / "s0.nii", ns=(0, 0))
    assert embed_scans().skipped
    after = json.loads(record.read_text())["scans"]
    assert after["content"] == before["content"]
    assert after["state"] != before["state"]
    size = (scans.parent / "s0.nii").stat().st_size
    write_scan(scans.parent / "s0.nii", noise(99), np.eye(4))
    assert (scans.parent / "s0.nii").stat().st_size == size
    with pytest.raises(ConfigError, match=r"embeddings\.parquet: exists and was made of other scans.*set overwrite"):
        embed_scans()
    new = pd.read_parquet(embed_scans(overwrite=True).path)
    assert (old["z_000"] != new["z_000"]).tolist() == [True] + [False] * 4
    assert embed_scans().skipped


# -- what is said about z_sem ------------------------------------------------------------------------------------------


def test_a_case_whose_z_sem_is_not_finite_fails(embed_scans, monkeypatch):
    def one_without_z(*arguments):
        codes = original(*arguments)
        codes[1, 3] = float("nan")
        return codes

    original = encode_stream.__globals__["encode_exactly"]
    monkeypatch.setitem(encode_stream.__globals__, "encode_exactly", one_without_z)
    result = embed_scans()
    assert (result.num_cases, result.num_failed) == (4, 1)
    assert pd.read_parquet(result.path)["id"].tolist() == ["s0", "s2", "s3", "s4"]
    (failure,) = pd.read_csv(result.failures).to_dict("records")
    assert failure["case_id"] == "s1"
    assert "z_sem is not finite" in failure["reason"]


def test_the_table_says_how_much_the_decoder_uses_z_sem(tiny_bundle, embedded, tmp_path, caplog):
    usage = load_bundle(tiny_bundle.directory, "cpu").z_sem_usage
    result = embed(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "e.csv", device="cpu")
    assert result.z_sem_usage == usage
    assert f"z_sem_usage {usage:.3f}: the decoder hardly uses z_sem" in caplog.text
    for path in (result.path, embedded.path):
        assert read_embeddings(path).attrs["monai_diffae"]["z_sem_usage"] == usage


def test_scans_unlike_those_of_the_training_are_noticed(latent_bundle, labelled, other_cohort, tmp_path, caplog):
    embed(latent_bundle, labelled.cohort, tmp_path / "own", device="cpu")
    assert "unlike" not in caplog.text

    def inverted(table):
        for i, path in enumerate(table["image"]):
            scan = nib.load(path)
            data = np.asarray(scan.dataobj)
            table.loc[i, "image"] = str(tmp_path / f"{i}.nii.gz")
            nib.save(nib.Nifti1Image(data.max() - data, scan.affine), tmp_path / f"{i}.nii.gz")
        return table

    cohort = other_cohort(inverted)
    embed(latent_bundle, cohort, tmp_path / "other", device="cpu")
    assert "12 of 12 z_sem are unlike those of the training: these scans may be of another kind" in caplog.text


# -- tables that other tools draw as a map -----------------------------------------------------------------------------


def test_a_table_can_have_places_and_pictures(labelled, other_cohort, tmp_path):
    cohort = other_cohort(lambda table: table.assign(x=range(12)))
    made = embed(labelled.bundle, cohort, tmp_path / "map", map_columns=True, device="cpu").path
    table, plain = read_embeddings(made), read_embeddings(labelled.embeddings)
    assert table["label_x"].tolist() == list(range(12))
    others = table.drop(columns=["x", "y", "thumbnail", "label_x"])
    pd.testing.assert_frame_equal(others, plain, check_exact=True)
    assert {Image.open(io.BytesIO(png)).size for png in table["thumbnail"]} == {(16, 16)}
    is_train = table["split"] == "train"
    np.testing.assert_allclose(table.loc[is_train, ["x", "y"]].mean(), 0, atol=1e-4)
    assert table.loc[is_train, "x"].std() >= table.loc[is_train, "y"].std()
    assert label_columns(table.drop(columns="label_x")) == label_columns(plain)
    assert probe(made, targets=["head_size"], probes=["linear"]).rows
