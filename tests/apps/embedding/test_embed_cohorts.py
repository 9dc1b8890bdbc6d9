"""Cohorts of many scans: interrupted and resumed, shared among processes, with bad scans among them."""

import logging
import os
import shutil
import signal

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from forked_program import die_at_call
from PIL import Image

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.embedding.encoding import CohortEncoder
from monai_diffae.apps.settings import Process
from monai_diffae.data.atomic import PartStore
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.embeddings import read_embeddings, split_origin
from monai_diffae.data.formats import nifti
from monai_diffae.errors import BusyError, ConfigError, MachineError, OtherResultsError, ScanError


def pictures(folder, count, start=0):
    """Names of ``count`` PNGs of 16 x 16 noise."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"p{start + i:04d}.png" for i in range(count)]
    for i, name in enumerate(names):
        noise = np.random.default_rng(start + i).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return names


def table_of(folder, names):
    pd.DataFrame({"image": names, "split": "test", "age": range(len(names))}).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.fixture(scope="module", autouse=True)
def parts_of_four():
    """Four scans are a part, as 256 pictures of this size are for users; one thread, for the last bits of results."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_diffae.apps.embedding.encoding._CALLS_PER_PART", 1)
        patch.setattr("monai_diffae.apps.embedding.encoding.images_at_once", lambda size: 4)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """11 pictures: three parts."""
    folder = tmp_path_factory.mktemp("many")
    return table_of(folder, pictures(folder, 11))


@pytest.fixture(scope="module")
def whole(labelled, cohort, tmp_path_factory):
    """The pictures, embedded in one run."""
    return embed(labelled.bundle, cohort, tmp_path_factory.mktemp("whole") / "z.parquet", device="cpu").path


@pytest.fixture
def interrupted(written, labelled):
    """A run that is stopped after so many parts."""

    def run(num_parts, cohort, out, **options):
        written.stop_after = len(written) + num_parts
        with pytest.raises(KeyboardInterrupt):
            embed(labelled.bundle, cohort, out, device="cpu", **options)

    return run


def words(bundle, cohort, out):
    return ["--quiet", "embed", "--bundle", bundle, "--cohort", cohort, "--out", out, "--device", "cpu"]


@pytest.mark.goal(id="R16")
def test_a_killed_run_resumes_and_the_table_is_the_same_to_the_byte(
    labelled, cohort, whole, start_program, written, tmp_path
):
    out = tmp_path / "z.parquet"

    def fault():
        die_at_call(1, lambda: len([*tmp_path.glob(".z-*/part-*.parquet")]) == 2)

    assert start_program(*words(labelled.bundle, cohort, out), fault=fault).wait() == -signal.SIGKILL
    assert not out.exists()
    assert embed(labelled.bundle, cohort, out, device="cpu").num_cases == 11
    assert written == [[8, 9, 10]]
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".z-*"))


def test_processes_share_a_cohort_and_the_table_is_the_same(
    labelled, cohort, whole, written, start_program, monkeypatch, tmp_path
):
    out, processes = tmp_path / "z.parquet", []
    for rank in range(2):  # as torchrun numbers them
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        processes.append(start_program(*words(labelled.bundle, cohort, out)))
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".z-*"))
    embed(labelled.bundle, cohort, tmp_path / "second.parquet", device="cpu")  # of two processes, the second alone
    assert written == [[4, 5, 6, 7]]


def test_the_jobs_of_an_array_encode_parts_and_the_last_call_merges_them(labelled, cohort, whole, written, tmp_path):
    out = tmp_path / "z.parquet"
    for part in ("2/2", "1/2"):
        result = embed(labelled.bundle, cohort, out, device="cpu", part=part)
        assert result.path is None
        assert f"part {part} is encoded" in next(result.lines())
        with pytest.raises(ConfigError, match="part: '3/2' is not a part such as 3/16"):
            embed(labelled.bundle, cohort, out, device="cpu", part="3/2")
    assert not out.exists()
    (parts,) = tmp_path.glob(".z-*")
    assert sorted(pd.read_parquet(parts)["position"]) == list(range(11))  # one table for other programs, too
    assert embed(labelled.bundle, cohort, out, device="cpu").num_cases == 11
    assert written == [[4, 5, 6, 7], [0, 1, 2, 3], [8, 9, 10]]
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".z-*"))


def test_parts_of_scans_that_were_replaced_are_not_used(labelled, interrupted, tmp_path):
    cohort = table_of(tmp_path, pictures(tmp_path, 7))
    interrupted(1, cohort, tmp_path / "z.parquet")
    for number, name in enumerate(pictures(tmp_path / "other", 7, start=5000)):
        shutil.copy(tmp_path / "other" / name, tmp_path / f"p{number:04d}.png")
    again = embed(labelled.bundle, cohort, tmp_path / "z.parquet", device="cpu").path
    fresh = embed(labelled.bundle, cohort, tmp_path / "fresh.parquet", device="cpu").path
    assert again.read_bytes() == fresh.read_bytes()


def test_parts_of_other_settings_are_deleted_when_a_table_is_complete(labelled, interrupted, tmp_path):
    cohort, out = table_of(tmp_path, pictures(tmp_path, 3)), tmp_path / "out" / "z.parquet"
    interrupted(1, cohort, out, overrides={"percentiles": [1, 99]})
    others = [out.parent / name for name in (".zz-0123456789ab", ".z-0123456789ab-0123456789ab", ".z-mine")]
    for folder in others:
        folder.mkdir()
    (old,) = set(out.parent.glob(".z-*")) - {*others}
    os.utime(old, (0, 0))
    embed(labelled.bundle, cohort, out, device="cpu")
    assert {path.name for path in out.parent.iterdir() if path.is_dir()} == {folder.name for folder in others}


def test_a_second_run_with_other_cases_is_refused_and_parts_of_a_running_job_stay(
    labelled, cohort, tmp_path, monkeypatch
):
    out, encode, others = tmp_path / "z.parquet", CohortEncoder.encode, (labelled.bundle, labelled.cohort)

    def encode_meanwhile(self, *arguments):
        encode(self, *arguments)
        monkeypatch.undo()
        embed(*others, out, device="cpu", part="1/2")
        with pytest.raises(BusyError):
            embed(*others, out, device="cpu")

    monkeypatch.setattr(CohortEncoder, "encode", encode_meanwhile)
    assert embed(labelled.bundle, cohort, out, device="cpu").num_cases == 11
    assert list(tmp_path.glob(".z-*/part-*.parquet"))
    with pytest.raises(OtherResultsError):
        embed(*others, out, device="cpu")


# -- bad scans ---------------------------------------------------------------------------------------------------------


def test_each_table_of_a_folder_has_its_own_list_of_failures(run, labelled, tmp_path, caplog):
    out, scans = tmp_path / "out", tmp_path / "scans"
    names = pictures(scans, 2)
    for name in ("a", "b"):
        bad = [f"{name}{number}.png" for number in range(6)]
        for file in bad:
            Image.new("L", (16, 16)).save(scans / file)
        code, _, error = run(*words(labelled.bundle, table_of(scans, [*names, *bad]), out / f"{name}.csv"))
        assert (code, error.splitlines()[-1]) == (3, f"6 of 8 cases failed: see {name}_failures.csv")
        assert f"more cases are skipped; {name}_failures.csv has all of them" in caplog.text
    for name in ("a", "b"):
        assert pd.read_csv(out / f"{name}_failures.csv")["file"].tolist() == [f"{name}{n}.png" for n in range(6)]


@pytest.fixture
def away(monkeypatch):
    """Names of files that cannot be read for now, as if a network drive were away."""
    names = set()
    read = nifti.read

    def read_if_there(path, channel=None):
        if path.name in names:
            raise ScanError(f"{path.name}: cannot be read (Host is down); try again")
        return read(path, channel)

    monkeypatch.setattr(nifti, "read", read_if_there)
    return names


def image(path, is_finite=True):
    """A NIfTI image of 16 x 16 noise, or without a finite voxel."""
    noise = np.random.default_rng(len(path.name)).normal(size=(16, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise if is_finite else np.full_like(noise, np.nan), np.eye(4)), path)


def test_only_what_failed_in_an_earlier_run_is_tried_again(labelled, tmp_path, interrupted, caplog, away):
    names = pictures(tmp_path, 3)
    for name in ("a.nii", "b.nii", "for_good.nii"):
        image(tmp_path / name, is_finite=name != "for_good.nii")
    away.update({"a.nii", "b.nii"})
    cohort = table_of(tmp_path, ["a.nii", names[0], "for_good.nii", "b.nii", *names[1:]])  # two parts
    interrupted(1, cohort, tmp_path / "z.parquet")
    away.clear()
    caplog.set_level(logging.INFO, "monai_diffae")
    made = embed(labelled.bundle, cohort, tmp_path / "z.parquet", device="cpu")
    assert (made.num_cases, made.num_failed) == (5, 1)
    assert "encoding 5 cases" in caplog.text  # three that failed, and the second part
    fresh = embed(labelled.bundle, cohort, tmp_path / "fresh" / "z.parquet", device="cpu")
    assert made.path.read_bytes() == fresh.path.read_bytes()
    assert made.failures.read_text() == fresh.failures.read_text()


def test_cases_of_a_process_that_never_came_are_an_error(trained, cohort, tmp_path):
    store, cases = PartStore(tmp_path / "parts", "z", id_column="row"), read_cohort(cohort)
    coder = CohortEncoder(cases, trained, store, Process(0, 2), patience_s=0.5)
    coder.encode(64, 0, "failures.csv")
    with pytest.raises(MachineError, match="4 cases were not encoded by other processes"):
        coder.gather()


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_table_of_new_scans_has_no_split_and_records_why(labelled, tmp_path):
    cohort = tmp_path / "scans.csv"
    pd.DataFrame({"image": pictures(tmp_path, 9)}).to_csv(cohort, index=False)
    table = read_embeddings(embed(labelled.bundle, cohort, tmp_path / "z", device="cpu").path)
    assert split_origin(table) == "drawn"
    assert "split" not in table  # these scans are new to the model
    baseline = embed(labelled.bundle, cohort, tmp_path / "z", encoder="untrained", device="cpu")
    assert split_origin(read_embeddings(baseline.path)) is None


def test_what_would_replace_the_cohort_other_columns_or_records_is_refused(labelled, tmp_path):
    names = pictures(tmp_path, 3)
    with pytest.raises(ConfigError, match=r"cohort\.csv: this is the cohort; choose another out"):
        embed(labelled.bundle, table_of(tmp_path, names), tmp_path / "cohort.csv", device="cpu", overwrite=True)
    pd.DataFrame({"image": names, "z_000": 1, "label_z_000": 2}).to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(ConfigError, match="two labels would both become 'label_z_000'; rename one"):
        embed(labelled.bundle, tmp_path / "two.csv", tmp_path / "two.parquet", device="cpu")
    for name in ("z.parquet", "z.json"):
        (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match=r"z\.csv: would share its record with z\.parquet; choose another out"):
        embed(labelled.bundle, table_of(tmp_path, names), tmp_path / "z.csv", device="cpu")
