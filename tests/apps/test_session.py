import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from monai_diffae.apps.session import check_choice, checksum_of_cases, open_cohort
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.errors import CohortError, ConfigError


@pytest.fixture(scope="module")
def opened(labelled):
    return open_cohort(labelled.bundle, labelled.cohort, device="cpu")


def test_cases_are_chosen_by_id_in_their_order_or_by_split(opened, labelled):
    table = pd.read_csv(labelled.cohort)
    ids = table["id"].tolist()
    assert [case.id for case in opened.choose([ids[3], ids[0], ids[3]])] == [ids[3], ids[0]]
    assert [case.id for case in opened.choose()] == ids
    assert [case.id for case in opened.choose(limit=2)] == ids[:2]
    assert [case.id for case in opened.choose(split="test")] == table["id"][table["split"] == "test"].tolist()


def test_wrong_choices_are_one_line(opened):
    with pytest.raises(CohortError, match="the cohort has no 'mni-00005z'; did you mean 'mni-00000"):
        opened.choose(["mni-00005z"])
    with pytest.raises(ConfigError, match="split: 'all' is not one of train, val, test"):
        check_choice("all", None)
    for limit in (0, -1):
        with pytest.raises(ConfigError, match=f"limit: {limit} is below 1"):
            check_choice(None, limit)


def test_an_empty_split_is_one_line(labelled, tmp_path):
    table = pd.read_csv(labelled.cohort)
    table[table["split"] != "test"].to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(CohortError, match="no case is in the split 'test'"):
        open_cohort(labelled.bundle, tmp_path / "cohort.csv", device="cpu").choose(split="test")


def test_codes_are_those_of_embed_and_decode_to_the_image_whatever_the_other_cases(opened, labelled, tmp_path):
    cases = opened.choose(limit=3)
    coded = list(opened.coded(opened.read(cases, tmp_path), "coding"))
    alone = next(opened.coded(opened.read(cases[2:], tmp_path), "coding"))
    assert torch.equal(coded[2].z_sem, alone.z_sem)
    assert torch.equal(coded[2].x_T, alone.x_T)
    embedded = z_matrix(read_embeddings(labelled.embeddings))
    for i, one in enumerate(coded):
        assert one.case == cases[i]
        np.testing.assert_array_equal(one.z_sem[0].numpy(), embedded[i])
        error = (opened.decode(one.z_sem, one.x_T) - one.image).square().mean()
        noise = (opened.decode(one.z_sem, torch.randn_like(one.x_T)) - one.image).square().mean()
        assert error < noise / 10
    assert opened.failures == []


def test_one_code_serves_all_of_the_other(opened):
    rng = torch.Generator().manual_seed(0)
    z_sem, x_T = torch.randn(3, 8, generator=rng), torch.randn(3, 1, 16, 16, generator=rng)
    for i in range(3):
        one = opened.decode(z_sem[i : i + 1], x_T[i : i + 1])
        torch.testing.assert_close(opened.decode(z_sem, x_T[i : i + 1])[i : i + 1], one)
        torch.testing.assert_close(opened.decode(z_sem[i : i + 1], x_T)[i : i + 1], one)


def test_cases_that_cannot_be_read_are_left_out_and_listed(labelled, tmp_path):
    table = pd.read_csv(labelled.cohort).iloc[:3]
    nib.save(nib.Nifti1Image(np.full((16, 16, 1), np.nan, np.float32), np.eye(4)), tmp_path / "nan.nii")
    table.loc[1, "image"] = str(tmp_path / "nan.nii")
    table.to_csv(tmp_path / "cohort.csv", index=False)
    opened = open_cohort(labelled.bundle, tmp_path / "cohort.csv", device="cpu")
    coded = list(opened.coded(opened.read(opened.choose(), tmp_path / "out"), "coding"))
    assert [one.case.id for one in coded] == [table["id"][0], table["id"][2]]
    assert [failure.case_id for failure in opened.failures] == [table["id"][1]]
    assert pd.read_csv(tmp_path / "out" / "failures.csv")["case_id"].tolist() == [table["id"][1]]


def test_what_results_depend_on_holds_no_names(opened, labelled):
    text = json.dumps(opened.made_from)
    assert "mni-" not in text
    assert str(labelled.cohort.parent) not in text
    changed = open_cohort(labelled.bundle, labelled.cohort, device="cpu", overrides={"inferer#steps": 2})
    assert changed.made_from != opened.made_from
    first, second = opened.choose(limit=2)
    digests = {checksum_of_cases(cases) for cases in ([first], [second], [first, second], [second, first])}
    assert len(digests) == 4
