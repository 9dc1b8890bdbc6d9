"""Scans are read once, bad ones are skipped with one line and listed, and augmentation is a function of its seed."""

import gc
import hashlib
import logging
import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, Resized
from scan_files import save_nifti, values
from torch.utils.data import DataLoader, default_collate

from monai_diffae.data import CachedCases, progress, read_cohort, remove_cache
from monai_diffae.data.cached import ScanCache
from monai_diffae.data.progress import Failure, write_failures
from monai_diffae.data.scan_states import item_states
from monai_diffae.errors import CohortError, ConfigError, MachineError, ScanError
from monai_diffae.transforms import ReadScand, ToModelRanged

TRANSFORM = Compose([ReadScand("image", 3), Resized("image", (4, 4, 4)), ToModelRanged("image")])
RANDOM = Compose([RandFlipd("image", prob=0.5), RandGaussianNoised("image", prob=0.9)])


def cohort(folder, n=6, bad=()):
    for i in range(n):
        path = save_nifti(folder / f"c{i}.nii.gz", values(5, 6, 7) + i)
        if i in bad:
            path.write_bytes(path.read_bytes()[:-9])
    return [case.item() for case in read_cohort(folder)]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_scans_are_skipped_with_one_line(tmp_path, workers, caplog):
    items = cohort(tmp_path, bad=(1, 4))
    cases = CachedCases(items, TRANSFORM, num_workers=workers)
    assert len(cases) == 4
    assert [i["id"] for i in cases.items] == ["c0", "c2", "c3", "c5"]
    assert [(f.case_id, f.file) for f in cases.failures] == [("c1", "c1.nii.gz"), ("c4", "c4.nii.gz")]
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(lines) == 2
    assert lines[0] == "case c1 skipped: c1.nii.gz: the compressed file ends early; copy it again"
    item = cases[1]
    assert set(item) == {"image", "id", "index"}
    assert (item["id"], item["index"]) == ("c2", 1)
    assert type(item["image"]) is torch.Tensor
    assert item["image"].dtype == torch.float32
    for k, case in enumerate(cases.items):
        np.testing.assert_array_equal(cases[k]["image"], TRANSFORM(case)["image"].as_tensor())
    assert str(tmp_path).encode() not in pickle.dumps(default_collate([cases[0], cases[1]]))
    # the hash of each scan, also of bad ones
    expected = [(item["id"], hashlib.sha256(Path(item["image"]).read_bytes()).hexdigest()) for item in items]
    assert cases.contents == expected


def test_items_are_copies(tmp_path):
    cases = CachedCases(cohort(tmp_path, 2), TRANSFORM)
    before = cases[0]["image"].clone()
    cases[0]["image"].zero_()
    assert torch.equal(cases[0]["image"], before)
    assert torch.equal(cases[-1]["image"], cases[1]["image"])
    with pytest.raises(IndexError):
        cases[2]


def test_cases_that_all_fail_or_differ_in_size(tmp_path):
    cases = CachedCases(cohort(tmp_path, 2, bad=(0, 1)), TRANSFORM)
    with pytest.raises(CohortError, match=r"all 2 cases failed, the first is 'c0': c0\.nii\.gz"):
        len(cases)
    with pytest.raises(CohortError, match="no cases"):
        CachedCases([], TRANSFORM).prepare()
    for name, depth in (("c0", 7), ("c1", 8)):
        save_nifti(tmp_path / f"{name}.nii.gz", values(5, 6, depth))
    cases = CachedCases([c.item() for c in read_cohort(tmp_path)], ReadScand("image", 3))
    assert len(cases) == 1
    assert "[1, 5, 6, 8] but others are [1, 5, 6, 7]" in cases.failures[0].reason


def test_augmentation_is_a_function_of_seed_epoch_and_index(tmp_path):
    items = cohort(tmp_path)

    def images(workers, seed=0, order=None):
        cases = CachedCases(items, TRANSFORM, RANDOM, seed=seed)
        order = order or [(e, i) for e in range(2) for i in range(6)]
        loader = DataLoader(cases, sampler=order, batch_size=None, num_workers=workers)
        return {key: item["image"] for key, item in zip(order, loader, strict=True)}

    first = images(0)
    for other in (images(2), images(0, order=list(first)[::-1])):
        assert all(torch.equal(first[k], other[k]) for k in first)
    assert not torch.equal(first[0, 0], first[1, 0])
    assert not torch.equal(first[0, 0], images(0, seed=1)[0, 0])
    cases = CachedCases(items, TRANSFORM, RANDOM)
    assert torch.equal(cases[3]["image"], first[0, 3])
    cases.epoch = 1
    assert torch.equal(cases[3]["image"], first[1, 3])
    assert type(cases[3]["image"]) is torch.Tensor


def test_without_augmentation_the_same_cases_are_as_they_are_and_read_once(tmp_path):
    cases = CachedCases(cohort(tmp_path), TRANSFORM, RANDOM)
    plain = cases.without_augmentation()
    for file in tmp_path.glob("*.nii.gz"):
        file.unlink()
    expected = plain[0]["image"]
    assert torch.equal(plain[(3, 0)]["image"], expected)
    assert not torch.equal(cases[(3, 0)]["image"], expected)
    assert cases.random_transform is RANDOM


def test_a_cache_that_is_not_kept_ends_with_its_dataset(tmp_path):
    (tmp_path / "scans").mkdir()
    items, folder = cohort(tmp_path / "scans"), tmp_path / "cache"
    cases = CachedCases(items, TRANSFORM, cache_dir=folder).prepare()
    (made,) = folder.iterdir()
    assert made.stat().st_mode & 0o777 == 0o700
    spawned = pickle.loads(pickle.dumps(cases))
    assert torch.equal(spawned[4]["image"], cases[4]["image"])
    if (pid := os.fork()) == 0:  # a worker that ends leaves the cache alone
        del cases, spawned
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    assert made.exists()
    del cases
    gc.collect()
    assert not made.exists()


# -- a cache that is kept ----------------------------------------------------------------------------------------------


@pytest.fixture
def scans(tmp_path):
    (tmp_path / "scans").mkdir()
    return cohort(tmp_path / "scans", bad=(1,))


def kept(tmp_path, items, transform=TRANSFORM, size=1, **settings):
    return CachedCases(items, transform, cache_dir=tmp_path / "cache", made_from={"size": size}, **settings)


def test_a_kept_scan_is_not_read_again_unless_it_changes(tmp_path, scans):
    read = []

    def transform(item):
        read.append(item["id"])
        return TRANSFORM(item)

    first = kept(tmp_path, scans, transform).prepare()
    assert read == ["c0", "c1", "c2", "c3", "c4", "c5"]
    save_nifti(tmp_path / "scans" / "c2.nii.gz", values(5, 6, 7) + 40)
    read.clear()
    again = kept(tmp_path, scans, transform).prepare()
    assert read == ["c1", "c2"]  # a scan that failed is tried again
    assert again.failures == first.failures
    assert [content for _, content in again.contents if content not in dict(map(reversed, first.contents))]
    for case, other, own in zip(again.items, first, again, strict=True):
        assert torch.equal(own["image"], other["image"]) == (case["id"] != "c2")
        assert torch.equal(own["image"], TRANSFORM(case)["image"].as_tensor())


def test_processes_share_the_reading(tmp_path, scans):
    fork = multiprocessing.get_context("fork")
    one, two = (kept(tmp_path, scans, rank=rank, world_size=2) for rank in (0, 1))
    other = fork.Process(target=two.prepare)
    other.start()
    assert len(one) == 5
    other.join()
    names = sorted(part.name[:16] for part in (tmp_path / "cache").glob("*.safetensors"))
    assert {name[-4:] for name in names} == {"0000", "0001"}
    assert len(kept(tmp_path, scans)) == 5


def test_a_killed_process_loses_only_what_it_had_not_saved(tmp_path, scans):
    """It is killed after each scan that it reads, until all are there."""
    items, folder, fork = [scans[0], *scans[2:]], tmp_path / "cache", multiprocessing.get_context("fork")
    states, ends = item_states(items), [-signal.SIGKILL]

    def read_until_killed():
        cache = ScanCache(folder, {}, save_every_s=0)
        known = [cache.is_usable(state) for state in states]
        for is_known, _ in zip(known, cache.stream(items, states, TRANSFORM), strict=True):
            if not is_known:
                os.kill(os.getpid(), signal.SIGKILL)

    while ends[-1] and len(ends) < 9:
        process = fork.Process(target=read_until_killed)
        process.start()
        process.join()
        ends.append(process.exitcode)
    assert ends[1:] == [-signal.SIGKILL] * 5 + [0]
    cache = ScanCache(folder, {})
    for item, state in zip(items, states, strict=True):
        assert (cache.images(state)["image"] == TRANSFORM(item)["image"].numpy()).all()


def test_a_run_replaces_and_removes_its_own_cache_only(tmp_path, scans):
    folder, shared = tmp_path / "cache", tmp_path / "results"
    for size in (1, 2):
        assert len(kept(tmp_path, scans, size=size, output_dir=tmp_path)) == 5
    with pytest.raises(ConfigError, match="^cache: holds scans that were preprocessed otherwise"):
        kept(tmp_path, scans, output_dir=shared).prepare()
    (folder / "mine").touch()
    remove_cache(folder, shared)
    assert len(list(folder.glob("*.safetensors"))) == 1
    remove_cache(folder, tmp_path)
    assert [file.name for file in folder.iterdir()] == ["mine"]


def test_two_preprocessings_that_begin_at_once_are_told_apart(tmp_path, scans):
    states = item_states(scans)
    caches = [ScanCache(tmp_path / "cache", {"size": size}) for size in (1, 2)]
    for cache in caches:
        [*cache.stream(scans, states, TRANSFORM)]
    with pytest.raises(ConfigError, match="^cache: holds scans that were preprocessed otherwise"):
        ScanCache(tmp_path / "cache", {})


def test_an_image_counts_more_than_a_failure_of_another_process(tmp_path, scans):
    def fail(item):
        raise ScanError("network")

    states = item_states(scans[:1])
    caches = [ScanCache(tmp_path / "cache", {}) for _ in "ab"]
    for cache, transform in zip(caches, (TRANSFORM, fail), strict=True):
        [*cache.stream(scans[:1], states, transform)]
    assert ScanCache(tmp_path / "cache", {}).is_usable(states[0])


@pytest.mark.parametrize("damage", ["cut", "header", "flip"])
def test_a_damaged_file_of_a_cache_is_found(tmp_path, scans, damage):
    kept(tmp_path, scans).prepare()
    (part,) = (tmp_path / "cache").glob("*.safetensors")
    content = bytearray(part.read_bytes())
    if damage == "cut":
        del content[-4:]
    else:
        content[-1 if damage == "flip" else 9] ^= 1
    part.write_bytes(content)
    with pytest.raises(MachineError, match=rf"^cache/{part.name}: cannot be read; delete it and run again"):
        [item["image"] for item in kept(tmp_path, scans)]
    part.unlink()
    assert len(kept(tmp_path, scans)) == 5


def die(item):
    os._exit(9)


def test_a_worker_that_dies_is_one_line(tmp_path):
    with pytest.raises(MachineError, match="a worker process that reads scans was killed, .*; use fewer workers"):
        CachedCases(cohort(tmp_path, 2), die, num_workers=1).prepare()


@pytest.mark.goal(id="R7")
@pytest.mark.parametrize("number", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_cases_of_which_some_are_bad(tmp_path, number):
    items = cohort(tmp_path, number, bad=tuple(range(0, number, 20)))
    cases = CachedCases(items, TRANSFORM)
    good = CachedCases(cases.items, TRANSFORM)
    assert (len(cases), len(cases.failures), len(good)) == (number * 19 // 20, number // 20, number * 19 // 20)
    assert all(torch.equal(cases[i]["image"], good[i]["image"]) for i in range(len(good)))


FAILURE = Failure("c1", "c1.nii", 'c1.nii: "odd", cut; copy it again')


def test_long_work_writes_a_line_every_10_seconds_into_a_log(monkeypatch, caplog):
    clock = iter(range(0, 100, 4))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level(logging.INFO, "monai_diffae"):
        assert [*progress.track(range(10), "encoding 10 scans")] == [*range(10)]
    begin, *lines = caplog.messages
    assert (begin, lines[0]) == ("encoding 10 scans", "3 of 10, 4 s each, 0:00:28 left")
    assert [line.partition(",")[0] for line in lines] == ["3 of 10", "6 of 10", "9 of 10"]


def test_the_list_of_failures_is_replaced_and_deleted_but_never_a_file_of_the_user(tmp_path):
    path = tmp_path / "new" / "failures.csv"
    assert write_failures(path, []) == path
    assert not path.exists()
    write_failures(path, [FAILURE])
    assert path.read_text() == 'case_id,file,reason\nc1,c1.nii,"c1.nii: ""odd"", cut; copy it again"\n'
    write_failures(path, [])
    assert not path.exists()
    path.write_text("mine")
    write_failures(path, [])
    with pytest.raises(ConfigError, match=r"^failures\.csv: already exists and was not written by this package"):
        write_failures(path, [FAILURE])
    assert path.read_text() == "mine"
