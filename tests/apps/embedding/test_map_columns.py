"""Tables that other tools draw as a map."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_diffae import embed, probe
from monai_diffae.data.embeddings import label_columns, read_embeddings
from monai_diffae.errors import ConfigError


def test_a_table_can_have_places_and_pictures(labelled, tmp_path):
    table = read_embeddings(embed(labelled.bundle, labelled.cohort, tmp_path, map_columns=True, device="cpu").path)
    plain = read_embeddings(labelled.embeddings)
    pd.testing.assert_frame_equal(table.drop(columns=["x", "y", "thumbnail"]), plain, check_exact=True)
    assert {Image.open(io.BytesIO(png)).size for png in table["thumbnail"]} == {(16, 16)}
    is_train = table["split"] == "train"
    np.testing.assert_allclose(table.loc[is_train, ["x", "y"]].mean(), 0, atol=1e-4)
    assert table.loc[is_train, "x"].std() >= table.loc[is_train, "y"].std()
    assert label_columns(table) == label_columns(plain)


def test_other_commands_take_such_a_table(labelled, tmp_path):
    made = embed(labelled.bundle, labelled.cohort, tmp_path, map_columns=True, device="cpu")
    assert probe(made.path, tmp_path / "probed", targets=["head_size"]).rows is not None


def test_labels_of_these_names_stay(labelled, tmp_path):
    cohort = pd.read_csv(labelled.cohort).assign(x=range(12))
    cohort.to_csv(tmp_path / "cohort.csv", index=False)
    table = read_embeddings(
        embed(labelled.bundle, tmp_path / "cohort.csv", tmp_path / "out", map_columns=True, device="cpu").path
    )
    assert table["label_x"].tolist() == list(range(12))
    assert "x" in label_columns(
        read_embeddings(embed(labelled.bundle, tmp_path / "cohort.csv", tmp_path / "plain").path)
    )


def test_a_table_without_them_is_not_mistaken_for_one_with_them(labelled, tmp_path):
    embed(labelled.bundle, labelled.cohort, tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="map_columns"):
        embed(labelled.bundle, labelled.cohort, tmp_path, map_columns=True, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": "mean"}, "map_columns: are for tables with one row per image"),
        ({"patches": True}, "map_columns: are for tables with one row per image"),
        ({"out": "table.csv"}, "map_columns: a CSV cannot hold thumbnails"),
    ],
)
def test_what_cannot_have_them_is_refused(labelled, arguments, message):
    with pytest.raises(ConfigError, match=message):
        embed(labelled.bundle, labelled.cohort, **{"out": "out", "map_columns": True, **arguments})
