"""Cohorts of many scans: interrupted and resumed, shared among processes, with bad scans among them."""

import gzip
import json
import logging
import os
import re
import shutil
import signal
import time
from collections import Counter

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.data.embeddings import read_embeddings, split_origin, z_matrix
from monai_diffae.data.formats import nifti
from monai_diffae.errors import ConfigError, ScanError


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


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """700 pictures: three shards."""
    folder = tmp_path_factory.mktemp("many")
    return table_of(folder, pictures(folder, 700))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The last bits of a result may depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(labelled, cohort, tmp_path_factory):
    """The pictures, embedded in one run with one thread."""
    return embed(labelled.bundle, cohort, tmp_path_factory.mktemp("whole") / "z.parquet", device="cpu").path


@pytest.mark.goal(id="R16")
def test_a_killed_run_resumes_and_the_table_is_the_same_to_the_byte(labelled, cohort, whole, start_program, tmp_path):
    out = tmp_path / "z.parquet"
    command = ["--quiet", "embed", "--bundle", labelled.bundle, "--cohort", cohort, "--out", out, "--device", "cpu"]
    process = start_program(*command, "--workers", "0")
    while not (done := list(tmp_path.glob(".z-*/*.npz"))) and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 1 <= len(done) < 3
    assert not out.exists()
    again = start_program(*command)
    again.join(120)
    assert again.exitcode == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".z-*"))


def interrupted(written, num_shards, *arguments, **options):
    """A run that is stopped after so many shards."""
    written.stop_after = len(written) + num_shards
    with pytest.raises(KeyboardInterrupt):
        embed(*arguments, device="cpu", workers=0, **options)


def test_finished_shards_are_not_encoded_again(labelled, cohort, tmp_path, written):
    interrupted(written, 2, labelled.bundle, cohort, tmp_path / "z.parquet")
    assert embed(labelled.bundle, cohort, tmp_path / "z.parquet", device="cpu", workers=0).num_cases == 700
    assert written == [0, 1, 2]


def test_processes_share_a_cohort_and_the_table_is_the_same(
    labelled, cohort, whole, start_program, monkeypatch, tmp_path
):
    out = tmp_path / "z.parquet"
    command = ["--quiet", "embed", "--bundle", labelled.bundle, "--cohort", cohort, "--out", out, "--device", "cpu"]
    processes = []
    for rank in range(2):  # as torchrun numbers them
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        processes.append(start_program(*command, "--workers", "0"))
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".z-*"))


def test_worker_processes_give_the_same_table(labelled, cohort, whole, tmp_path):
    made = embed(labelled.bundle, cohort, tmp_path / "z.parquet", device="cpu", workers=2, batch_size=7)
    pd.testing.assert_frame_equal(pd.read_parquet(made.path), pd.read_parquet(whole), atol=1e-5)


def test_a_csv_holds_the_same_numbers_to_the_bit(labelled, tmp_path):
    made = embed(labelled.bundle, labelled.cohort, tmp_path / "z.csv", device="cpu")
    assert split_origin(read_embeddings(made.path)) == "training"
    parquet = embed(labelled.bundle, labelled.cohort, tmp_path / "z2.parquet", device="cpu")
    assert np.array_equal(z_matrix(read_embeddings(made.path)), z_matrix(read_embeddings(parquet.path)))
    assert embed(labelled.bundle, labelled.cohort, tmp_path / "z.csv", device="cpu").skipped


def test_a_tables_metadata_record_what_it_was_made_with(labelled):
    metadata = pd.read_parquet(labelled.embeddings).attrs["monai_diffae"]
    assert len(metadata["made_from"]["model"]) == 64
    assert {"monai_diffae", "monai", "torch"} <= metadata["versions"].keys()
    transforms = metadata["preprocessing"]["preprocessing"]["transforms"]
    assert transforms[0]["_target_"] == "monai_diffae.transforms.ReadScand"
    assert metadata["preprocessing"]["image_size"] == [16, 16]
    assert metadata["split_origin"] == "training"
    assert str(labelled.cohort.parent) not in str(metadata)


def test_a_table_records_that_its_split_was_drawn(labelled, tmp_path):
    cohort = tmp_path / "scans.csv"
    pd.DataFrame({"image": [str(tmp_path / name) for name in pictures(tmp_path, 9)]}).to_csv(cohort, index=False)
    table = read_embeddings(embed(labelled.bundle, cohort, tmp_path / "z", device="cpu").path)
    assert split_origin(table) == "drawn"
    assert set(table["split"]) == {"train", "val", "test"}
    baseline = embed(labelled.bundle, cohort, tmp_path / "z", encoder="untrained", device="cpu")
    assert split_origin(read_embeddings(baseline.path)) is None


KINDS = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("this is no picture"),
    "cut.png": lambda path: _cut_picture(path),
    "missing.nii": lambda path: None,
    "html.nii.gz": lambda path: path.write_text("<html>404 Not Found</html>"),
    "cut.nii.gz": lambda path: _cut_volume(path),
    "flipped.nii.gz": lambda path: _flipped_volume(path),
    "nan.nii": lambda path: nib.save(nib.Nifti1Image(np.full((16, 16), np.nan, np.float32), np.eye(4)), path),
    "time.nii": lambda path: nib.save(nib.Nifti1Image(np.ones((16, 16, 3, 4), np.float32), np.eye(4)), path),
    "header.nii": lambda path: path.write_bytes(b"\x5c\x01\x00\x00" + b"\xff" * 400),
}


def _cut_picture(path):
    (name,) = pictures(path.parent / "whole", 1, start=9000)
    path.write_bytes((path.parent / "whole" / name).read_bytes()[:100])


def _volume():
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32), np.eye(4))
    return bytearray(image.to_bytes())


def _cut_volume(path):
    path.write_bytes(gzip.compress(bytes(_volume()))[:-200])


def _flipped_volume(path):
    packed = bytearray(gzip.compress(bytes(_volume())))
    packed[len(packed) // 2] ^= 1
    path.write_bytes(packed)


@pytest.mark.goal(id="R7")
def test_fifty_bad_scans_of_ten_kinds_are_fifty_lines_and_nothing_else(run, labelled, tmp_path):
    good = pictures(tmp_path, 950)
    bad = []
    for i in range(5):
        for kind, spoil in KINDS.items():
            bad.append(f"{i}_{kind}")
            spoil(tmp_path / bad[-1])
    names = good + bad
    np.random.default_rng(0).shuffle(names)
    out = tmp_path / "embedded"
    code, _, log = run(
        "embed", "--bundle", labelled.bundle, "--cohort", table_of(tmp_path, names), "--out", out, "--device", "cpu"
    )
    assert code == 3
    table, failures = pd.read_parquet(out / "embeddings.parquet"), pd.read_csv(out / "failures.csv")
    assert len(table) == 950
    assert table["id"].tolist() == [name.removesuffix(".png") for name in names if name in set(good)]
    assert np.isfinite(z_matrix(table)).all()
    assert sorted(failures["file"]) == sorted(bad)
    assert Counter(file.split("_", 1)[1] for file in failures["file"]) == dict.fromkeys(KINDS, 5)
    for reason in failures["reason"]:
        assert "; " in reason
        assert "\n" not in reason
        assert str(tmp_path) not in reason
    assert "Traceback" not in log


def test_shards_of_scans_that_were_replaced_are_not_used(labelled, tmp_path, written):
    cohort = table_of(tmp_path, pictures(tmp_path, 300))
    interrupted(written, 1, labelled.bundle, cohort, tmp_path / "z.parquet")
    for name in pictures(tmp_path / "other", 300, start=5000):  # of the same size in bytes, or nearly
        number = int(name[1:5]) - 5000
        (tmp_path / f"p{number:04d}.png").write_bytes((tmp_path / "other" / name).read_bytes())
    again = pd.read_parquet(embed(labelled.bundle, cohort, tmp_path / "z.parquet", device="cpu", workers=0).path)
    fresh = pd.read_parquet(embed(labelled.bundle, cohort, tmp_path / "fresh.parquet", device="cpu", workers=0).path)
    pd.testing.assert_frame_equal(again, fresh)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("cohort.csv", "cohort.csv: this is the cohort; choose another out"),
        ("z.tsv", "z.tsv: tables are .parquet or .csv; choose a file with such a suffix, or a folder"),
        ("folder.csv", "folder.csv: is a folder, or lies below a file; choose another out"),
        ("file/z.csv", "z.csv: is a folder, or lies below a file; choose another out"),
        ("z.csv", "z.csv: would share its record with z.parquet; choose another out"),
    ],
)
def test_an_out_that_cannot_be_used_is_refused_before_anything_is_encoded(labelled, tmp_path, out, says):
    cohort = table_of(tmp_path, pictures(tmp_path, 2))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "z.parquet").write_text("")
    (tmp_path / "z.json").write_text("")
    before = cohort.read_bytes()
    with pytest.raises(ConfigError, match=re.escape(says)):
        embed(labelled.bundle, cohort, tmp_path / out, device="cpu", overwrite=True)
    assert cohort.read_bytes() == before


def test_labels_of_any_kind_are_kept_or_refused(labelled, tmp_path):
    names = pictures(tmp_path, 3)
    cases = [
        {"image": name, "id": ["NA", "null", "1"][i], "mixed": [True, 3, "x"][i], "huge": 10**20 + i}
        for i, name in enumerate(names)
    ]
    (tmp_path / "cohort.json").write_text(json.dumps({"training": cases}))
    made = embed(labelled.bundle, tmp_path / "cohort.json", tmp_path / "z.csv", device="cpu")
    table = read_embeddings(made.path)
    assert table["id"].tolist() == ["NA", "null", "1"]
    assert table["mixed"].tolist() == ["True", "3", "x"]
    assert table["huge"].tolist() == [1e20] * 3
    pd.DataFrame({"image": names, "z_000": 1, "label_z_000": 2}).to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(ConfigError, match="two labels of the cohort would both become 'label_z_000'; rename one"):
        embed(labelled.bundle, tmp_path / "two.csv", tmp_path / "two.parquet", device="cpu")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_words_for_missing_values_are_no_labels_and_none_is_a_class(labelled, tmp_path, kind, suffix):
    cohort = tmp_path / f"cohort.{kind}"
    columns = {"drug": ["None", "NA", "null", "ill"], "sex": ["F", np.nan, "M", "F"], "age": [1, 2, 3, np.nan]}
    table = pd.DataFrame({"image": pictures(tmp_path, 4), "split": "test", **columns})
    if kind == "csv":
        table.to_csv(cohort, index=False)
    else:
        cohort.write_text(json.dumps(table.astype(object).to_dict("records")))  # with NaN
    made = embed(labelled.bundle, cohort, tmp_path / f"z.{suffix}", device="cpu").path
    written = pd.read_parquet(made) if suffix == "parquet" else pd.read_csv(made, keep_default_na=False, na_values=[""])
    for read in (written, read_embeddings(made)):
        assert read["drug"].dropna().tolist() == ["None", "ill"]
        assert read["sex"].dropna().tolist() == ["F", "M", "F"]
        assert read["age"].dropna().tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["T.CSV", "T.PARQUET"])
def test_a_tables_suffix_may_be_in_capitals(labelled, tmp_path, name):
    made = embed(labelled.bundle, labelled.cohort, tmp_path / name, device="cpu")
    assert made.path == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".patient_key", name, "T.json"])
    assert np.array_equal(z_matrix(read_embeddings(made.path)), z_matrix(read_embeddings(labelled.embeddings)))
    for other in ("T.parquet", "T.csv"):
        with pytest.raises(ConfigError, match=re.escape(f"would share its record with {name}; choose another out")):
            embed(labelled.bundle, labelled.cohort, tmp_path / other, device="cpu")


@pytest.fixture
def away(monkeypatch):
    """Names of files that cannot be read for now, as if a network drive were away."""
    names = set()
    read = nifti.read

    def read_if_there(path):
        if path.name in names:
            raise ScanError(f"{path.name}: cannot be read (Host is down); try again")
        return read(path)

    monkeypatch.setattr(nifti, "read", read_if_there)
    return names


def image(path, is_finite=True):
    """A NIfTI image of 16 x 16 noise, or without a finite voxel."""
    noise = np.random.default_rng(len(path.name)).normal(size=(16, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise if is_finite else np.full_like(noise, np.nan), np.eye(4)), path)


def test_only_what_failed_in_an_earlier_run_is_tried_again(labelled, tmp_path, written, caplog, away):
    names = pictures(tmp_path, 297)  # two shards
    for name in ("a.nii", "b.nii", "for_good.nii"):
        image(tmp_path / name, is_finite=name != "for_good.nii")
    away.update({"a.nii", "b.nii"})
    cohort = table_of(tmp_path, ["a.nii", *names[:100], "for_good.nii", "b.nii", *names[100:]])
    interrupted(written, 1, labelled.bundle, cohort, tmp_path / "z.parquet")
    away.clear()
    caplog.set_level(logging.INFO, "monai_diffae")
    made = embed(labelled.bundle, cohort, tmp_path / "z.parquet", device="cpu", workers=0)
    assert (made.num_cases, made.num_failed) == (299, 1)
    assert f"encoding {300 - 256 + 3} cases" in caplog.text
    fresh = embed(labelled.bundle, cohort, tmp_path / "fresh" / "z.parquet", device="cpu", workers=0)
    assert made.path.read_bytes() == fresh.path.read_bytes()
    assert made.failures.read_text() == fresh.failures.read_text()


def test_the_first_process_tries_again_what_failed_for_others(labelled, tmp_path, monkeypatch, away):
    image(tmp_path / "a.nii")
    away.add("a.nii")
    names = pictures(tmp_path, 599)  # three shards, the second of which belongs to the other process
    cohort = table_of(tmp_path, [*names[:300], "a.nii", *names[300:]])
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    embed(labelled.bundle, cohort, tmp_path / "z.parquet", device="cpu", workers=0)
    away.clear()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("monai_diffae.apps.embedding.encoding.PATIENCE_S", 1.0)
    assert embed(labelled.bundle, cohort, tmp_path / "z.parquet", device="cpu", workers=0).num_failed == 0
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    fresh = embed(labelled.bundle, cohort, tmp_path / "fresh.parquet", device="cpu", workers=0)
    assert (tmp_path / "z.parquet").read_bytes() == fresh.path.read_bytes()


@pytest.mark.parametrize("unusual", ["two_modalities"], indirect=True)
def test_an_image_of_another_size_than_its_shard_fails_again_when_it_is_retried(unusual, tmp_path, written):
    config_file = unusual.bundle / "models" / "config.json"
    bundle = shutil.copytree(unusual.bundle, tmp_path / "bundle")
    config = json.loads(config_file.read_text())
    for step in config["preprocessing"]["transforms"][1:]:  # what the encoder sees stays as large as it is
        if "spatial_size" in step:
            step["keys"] = ["image"]
    (bundle / "models" / "config.json").write_text(json.dumps(config))
    (tmp_path / "c").mkdir()
    names = pictures(tmp_path / "c", 300)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20), dtype=np.uint8)).save(tmp_path / "c" / names[7])
    pd.DataFrame({"image": names, "encoder_image": names, "split": "test"}).to_csv(tmp_path / "c.csv", index=False)
    cohort = (tmp_path / "c.csv").rename(tmp_path / "c" / "cohort.csv")
    interrupted(written, 1, bundle, cohort, tmp_path / "z.parquet")
    made = embed(bundle, cohort, tmp_path / "z.parquet", device="cpu", workers=0)
    assert (made.num_cases, made.num_failed) == (299, 1)
    assert "the size is [1, 16, 20] but others are [1, 16, 16]" in made.failures.read_text()


def test_each_table_of_a_folder_has_its_own_list_of_failures(run, labelled, tmp_path):
    out, scans = tmp_path / "out", tmp_path / "scans"
    scans.mkdir()
    for name in ("a", "b", "c"):
        bad = [] if name == "c" else [f"{name}.png"]
        for file in bad:
            (scans / file).write_bytes(b"")
        cohort = table_of(scans, [*pictures(scans, 2), *bad])
        options = ["--bundle", labelled.bundle, "--cohort", cohort, "--device", "cpu"]
        code, _, error = run("-q", "embed", *options, "--out", out / f"{name}.csv")
        assert code == (3 if bad else 0)
        assert not bad or error.splitlines()[-1] == f"1 of 3 cases failed: see {name}_failures.csv"
    for name in ("a", "b"):
        assert pd.read_csv(out / f"{name}_failures.csv")["file"].tolist() == [f"{name}.png"]
    assert len(list(out.glob("*failures.csv"))) == 2
    code, _, error = run("-q", "embed", *options[:2], "--cohort", scans, "--out", out, "--device", "cpu")
    assert (code, error.splitlines()[-1].endswith("cases failed: see failures.csv")) == (3, True)
    assert (out / "failures.csv").is_file()


def test_abandoned_shards_of_other_settings_are_deleted_when_a_table_is_complete(labelled, tmp_path, written):
    cohort = table_of(tmp_path, pictures(tmp_path, 3))
    out = tmp_path / "out" / "z.parquet"
    for settings in ({"percentiles": [1, 99]}, {"percentiles": [2, 98]}):
        interrupted(written, 1, labelled.bundle, cohort, out, overrides=settings)
    old, new = out.parent.glob(".z-*")
    others = [out.parent / name for name in (".zz-0123456789ab", ".z-0123456789ab-0123456789ab", ".z-mine")]
    for folder in others:
        folder.mkdir()
    for folder in (old, *others):
        os.utime(folder, (time.time() - 90_000,) * 2)
    embed(labelled.bundle, cohort, out, device="cpu")
    remaining = {path.name for path in out.parent.iterdir() if path.is_dir()}
    assert remaining == {new.name, *(folder.name for folder in others)}


def test_shards_of_other_versions_are_not_used(labelled, tmp_path, written, monkeypatch):
    cohort, out = table_of(tmp_path, pictures(tmp_path, 3)), tmp_path / "out" / "z.parquet"
    for version in ("1", "2"):
        monkeypatch.setattr("monai_diffae.apps.results.__version__", version)
        interrupted(written, 1, labelled.bundle, cohort, out)
    assert len(list(out.parent.glob(".z-*"))) == 2
