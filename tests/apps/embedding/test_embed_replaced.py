"""Goals R5 and R16: a table counts as complete only if it is whole, and its scans are those that it was made of."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.embedding.encoding import encode_stream
from monai_diffae.apps.evaluation.neighbors import neighbors
from monai_diffae.apps.report.case_images import CaseImages
from monai_diffae.apps.scans_of_table import content_of_scans
from monai_diffae.apps.synthesis.reconstruct import reconstruct
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.scans import write_scan
from monai_diffae.errors import CohortError, ConfigError


def noise(seed):
    return np.random.default_rng(seed).normal(size=(1, 16, 16, 1)).astype(np.float32)


@pytest.fixture
def cohort(tmp_path):
    """Five uncompressed images, which always have the same size."""
    folder = tmp_path / "scans"
    for i in range(5):
        write_scan(folder / f"s{i}.nii", noise(i), np.eye(4))
    table = pd.DataFrame({"image": [f"s{i}.nii" for i in range(5)], "split": "test"})
    table.to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.fixture
def embedded(tiny_bundle, cohort, tmp_path):
    """Embeds the cohort to ``tmp_path / "z"``."""
    return lambda **options: embed(tiny_bundle.directory, cohort, tmp_path / "z", device="cpu", **options)


@pytest.mark.goal(id="R5")
def test_a_scan_that_was_replaced_by_one_of_the_same_size_is_noticed(cohort, embedded):
    old = pd.read_parquet(embedded().path)
    size = (cohort.parent / "s0.nii").stat().st_size
    write_scan(cohort.parent / "s0.nii", noise(99), np.eye(4))
    assert (cohort.parent / "s0.nii").stat().st_size == size
    with pytest.raises(ConfigError, match=r"embeddings\.parquet: exists and was made of other scans.*set overwrite"):
        embedded()
    new = pd.read_parquet(embedded(overwrite=True).path)
    assert not np.allclose(old["z_000"][0], new["z_000"][0])
    assert embedded().skipped


@pytest.mark.goal(id="R16")
def test_scans_that_were_exchanged_are_noticed_if_all_have_one_time(cohort, embedded):
    """Archives often give all files one time, and scans of one kind have one size."""
    first, second = (cohort.parent / f"s{i}.nii" for i in range(2))
    for file in (first, second):
        os.utime(file, ns=(0, 10**18))
    embedded()
    first.rename(cohort.parent / "other")
    second.rename(first)
    (cohort.parent / "other").rename(second)
    with pytest.raises(ConfigError, match=r"embeddings\.parquet: exists and was made of other scans.*set overwrite"):
        embedded()


def test_pictures_of_neighbors_of_a_replaced_scan_are_not_complete(cohort, embedded, tmp_path, tiny_bundle):
    options = {"bundle": tiny_bundle.directory, "cohort": cohort, "device": "cpu", "k": 1, "limit": 1}
    table = pd.read_csv(cohort)
    table.assign(split="train").to_csv(cohort, index=False)
    path = embedded().path

    def searched():
        return neighbors(path, tmp_path / "n", **options).skipped

    assert [searched(), searched()] == [False, True]
    write_scan(cohort.parent / "s0.nii", noise(99), np.eye(4))
    with pytest.raises(ConfigError, match="exists and was made with other images; set overwrite"):
        searched()


def test_pictures_of_a_report_of_a_replaced_scan_are_not_complete(cohort, embedded, tmp_path, tiny_bundle):
    def made_from():
        return CaseImages(tiny_bundle.directory, cohort, tmp_path, tmp_path / "z" / "embeddings.parquet").made_from

    before = made_from()
    embedded()
    assert made_from() == before
    write_scan(cohort.parent / "s0.nii", noise(99), np.eye(4))
    assert [key for key, value in made_from().items() if value != before[key]] == ["scans"]


def test_scans_are_not_read_to_know_the_contents_that_a_table_recorded(cohort, embedded, monkeypatch):
    path, cases = embedded().path, read_cohort(cohort)
    content = content_of_scans(cases, [])
    monkeypatch.setattr("monai_diffae.apps.scans_of_table.scan_contents", lambda cases: pytest.fail("scans are read"))
    assert content_of_scans(cases, [path]) == content


def test_reconstructions_of_a_replaced_scan_are_not_complete(tiny_bundle, cohort, tmp_path):
    def reconstructed():
        return reconstruct(tiny_bundle.directory, cohort, tmp_path / "r", cases=["s0"], device="cpu").skipped

    assert [reconstructed(), reconstructed()] == [False, True]
    write_scan(cohort.parent / "s0.nii", noise(99), np.eye(4))
    with pytest.raises(ConfigError, match="exists and was made with other scans; set overwrite"):
        reconstructed()


def test_scans_that_were_copied_are_the_same(cohort, embedded, tmp_path):
    record = embedded().path.with_suffix(".json")
    before = json.loads(record.read_text())["scans"]
    os.utime(cohort.parent / "s0.nii", ns=(0, 0))
    assert embedded().skipped
    after = json.loads(record.read_text())["scans"]
    assert after["content"] == before["content"]
    assert after["state"] != before["state"]


def test_an_interrupted_run_knows_the_contents_of_all_its_scans(cohort, tiny_bundle, tmp_path, written, monkeypatch):
    monkeypatch.setattr("monai_diffae.apps.embedding.encoding._CALLS_PER_SHARD", 1)
    monkeypatch.setattr("monai_diffae.apps.embedding.encoding.images_at_once", lambda size: 2)
    written.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        embed(tiny_bundle.directory, cohort, tmp_path / "a", device="cpu")
    written.stop_after = None
    paths = [embed(tiny_bundle.directory, cohort, tmp_path / name, device="cpu").path for name in "ab"]
    first, second = (json.loads(path.with_suffix(".json").read_text())["scans"] for path in paths)
    assert first == second


def flipped(content):
    return content[:200] + bytes([content[200] ^ 1]) + content[201:]


@pytest.mark.goal(id="R16")
@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-9], flipped])
def test_a_table_that_is_not_whole_is_not_complete(embedded, damage):
    path = embedded().path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"embeddings\.parquet: is not what was written .*; set overwrite"):
        embedded()
    assert not embedded(overwrite=True).skipped
    assert embedded().skipped


def test_a_case_whose_z_sem_is_not_finite_fails(tiny_bundle, cohort, tmp_path, monkeypatch):
    def one_without_z(*arguments):
        codes = original(*arguments)
        codes[1, 3] = float("nan")
        return codes

    original = encode_stream.__globals__["encode_exactly"]
    monkeypatch.setitem(encode_stream.__globals__, "encode_exactly", one_without_z)
    result = embed(tiny_bundle.directory, cohort, tmp_path / "z", device="cpu")
    assert (result.num_cases, result.num_failed) == (4, 1)
    assert "s1" not in pd.read_parquet(result.path)["id"].tolist()
    (failure,) = pd.read_csv(result.failures).to_dict("records")
    assert failure["case_id"] == "s1"
    assert "z_sem is not finite" in failure["reason"]


def test_all_z_sem_that_are_not_finite_are_one_line(tiny_bundle, cohort, tmp_path):
    import torch

    bundle = Path(shutil.copytree(tiny_bundle.directory, tmp_path / "bundle"))
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({name: value * 1e30 for name, value in weights.items()}, bundle / "models" / "model.pt")
    with pytest.raises(CohortError, match="all 5 cases failed.*z_sem is not finite"):
        embed(bundle, cohort, tmp_path / "z", device="cpu")
    with pytest.raises(ConfigError, match="the images or codes hold values that are not finite"):
        reconstruct(bundle, cohort, tmp_path / "r", split="test", device="cpu")
