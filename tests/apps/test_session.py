"""A bundle at work on a cohort: which cases it takes, their codes, the split, and ids that a user has given."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_bundles import copy_tiny, rewrite

from monai_diffae import embed, reconstruct
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Choice, Reading, Run
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.errors import CohortError

CPU = Run(device="cpu")


@pytest.fixture(scope="module")
def session(labelled):
    return Session.open(labelled.bundle, labelled.cohort, run=CPU)


def ids_of(cases):
    return [case.id for case in cases]


def test_cases_are_chosen_by_id_in_their_order_or_by_split(session, labelled):
    table = pd.read_csv(labelled.cohort)
    ids = table["id"].tolist()
    assert ids_of(session.choose(Choice([ids[3], ids[0], ids[3]]))) == [ids[3], ids[0]]
    assert ids_of(session.choose(Choice())) == ids
    assert ids_of(session.choose(Choice(limit=2))) == ids[:2]
    assert ids_of(session.choose(Choice(split="test"))) == table["id"][table["split"] == "test"].tolist()
    trained = table["id"][table["split"] == "train"].tolist()
    with pytest.raises(CohortError, match=f"^cases: '{trained[0]}' is in the split train, not test; omit split"):
        session.choose(Choice(trained[:1], split="test"))


def test_codes_of_opened_cases_are_those_of_embed_and_decode_to_the_image(session, labelled, tmp_path):
    cases = session.choose(Choice(limit=3))
    opened = session.opened(cases, tmp_path, "decoding")
    embedded = z_matrix(read_embeddings(labelled.embeddings))
    for i, one in enumerate(opened):
        assert one.case == cases[i]
        np.testing.assert_array_equal(one.z_sem[0].numpy(), embedded[i])
        error = (one.decode(one.z_sem) - one.images).square().mean()
        noise = (one.decode(one.z_sem, torch.randn_like(one.x_T)) - one.images).square().mean()
        assert error < noise / 10
    assert opened.failures == []


def test_a_split_that_is_drawn_again_is_one_warning(tiny_bundle, caplog, tmp_path):
    folder, bundle = tiny_bundle.cohort.parent, copy_tiny(tmp_path / "bundle", "2d")

    def opened(cohort):
        """Where the split is from, and the warnings."""
        caplog.clear()
        session = Session.open(bundle, cohort, run=CPU)
        session.choose(Choice(split="train"))
        return session.split_origin, [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    rewrite(bundle, test_fraction=0.3)
    rewrite(bundle, data={"fingerprint": Session.open(bundle, folder, run=CPU).cohort.fingerprint})
    assert opened(folder) == ("training", [])
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(folder / image) for image in table["image"]]
    table.to_csv(tmp_path / "split.csv", index=False)
    assert opened(tmp_path / "split.csv") == ("given", [])
    table.drop(columns="split").to_csv(tmp_path / "same.csv", index=False)
    assert opened(tmp_path / "same.csv") == ("training", [])  # the same scans under the same ids are drawn alike
    table.drop(columns="split")[1:].to_csv(tmp_path / "drawn.csv", index=False)
    origin, (line,) = opened(tmp_path / "drawn.csv")
    assert origin == "drawn"
    assert line.startswith("this is not the cohort of the training, so its split is drawn at random")
    assert str(tmp_path) not in line
    assert opened(table["image"][0])[1] == []  # one scan is in no split to be judged on
    rewrite(bundle, data={})  # as in bundles with shipped weights
    assert opened(tmp_path / "drawn.csv") == ("drawn", [])


@pytest.mark.parametrize("word", ["patient", "image"])
def test_a_column_that_only_the_training_table_has_is_named(tiny_bundle, tmp_path, word):
    bundle = copy_tiny(tmp_path / "bundle", "2d")
    train = bundle / "configs" / "train.json"
    train.write_text(json.dumps({**json.loads(train.read_text()), "columns": {word: "key"}}))
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    table = table.rename(columns={word: "other"})
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(CohortError) as caught:
        Session.open(bundle, tmp_path / "cohort.csv", run=CPU)
    assert str(caught.value).startswith(f'cohort.csv: no column "key", which was {word} in the bundle\'s training')
    assert f"--columns {word}=" in str(caught.value)
    session = Session.open(bundle, tmp_path / "cohort.csv", run=CPU, reading=Reading({word: "other"}))
    assert len(session.cohort.cases) == len(table)


def test_given_ids_stay_in_all_results_and_their_files_have_safe_names(tiny_bundle, tmp_path):
    bundle, ids = tiny_bundle.directory, ["benign (1)", "benign/2", "../étude 3", "plain"]
    images = [str(tiny_bundle.cohort.parent / image) for image in pd.read_csv(tiny_bundle.cohort)["image"][:4]]
    frame = pd.DataFrame({"image": images, "id": ids, "split": ["train", "train", "val", "test"], "age": range(4)})
    frame.to_csv(tmp_path / "scans.csv", index=False)
    cases = read_cohort(tmp_path / "scans.csv")
    names = [case.file_name for case in cases]
    for suffix in ("parquet", "csv"):
        table = read_embeddings(
            embed(bundle, tmp_path / "scans.csv", tmp_path / suffix / f"z.{suffix}", device="cpu").path
        )
        assert table.merge(frame, on="id")["id"].tolist() == ids
        assert table["file_name"].tolist() == names
    reconstruct(bundle, tmp_path / "scans.csv", tmp_path / "out", mode="z_sem", steps=2, device="cpu", split=None)
    written = sorted((tmp_path / "out").rglob("*.nii.gz"))
    assert sorted(file.name.removesuffix(".nii.gz") for file in written) == sorted(names)
    (table,) = (tmp_path / "out").glob("*.csv")
    assert pd.read_csv(table)["id"].tolist() == ids
    (tmp_path / "broken.csv").write_text(f'image,id\n{images[0]},"a\nb"\n')
    with pytest.raises(CohortError, match=r"the id 'a\\nb' has a line break"):
        read_cohort(tmp_path / "broken.csv")
