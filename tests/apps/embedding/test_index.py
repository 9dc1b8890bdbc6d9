"""The index is embed, piece by piece; it notices what changed, and survives others and a kill."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tiny_bundles import rewrite, scaled

from monai_diffae import embed, load_bundle
from monai_diffae.apps.embedding.index import EmbeddingIndex, IndexUpdate
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.errors import ConfigError


@pytest.fixture(scope="module")
def trained(labelled):
    return load_bundle(labelled.bundle, "cpu")


@pytest.fixture
def images(labelled, tmp_path):
    """Copies of the labelled cohort's images, by id."""
    table = pd.read_csv(labelled.cohort)
    (tmp_path / "images").mkdir()
    return {
        name: shutil.copy(image, tmp_path / "images" / f"Doe_{name}.nii.gz")
        for name, image in zip(table["id"], table["image"], strict=True)
    }


@pytest.fixture
def index(tmp_path):
    return EmbeddingIndex(tmp_path / "index")


def rows(cases):
    return dict(zip(cases.ids, cases.z_sem, strict=True))


def test_the_rows_are_those_of_embed_to_the_bit_whatever_the_pieces(labelled, trained, images, index):
    expected = read_embeddings(labelled.embeddings).sort_values("id")
    first = dict(list(images.items())[:5])
    assert index.update(trained, first, batch_size=2).new == sorted(first)
    update = index.update(trained, images, batch_size=3, workers=1)
    assert update == IndexUpdate(new=sorted(images.keys() - first.keys()))
    cases = index.read(trained)
    assert cases.ids == expected["id"].tolist()
    assert cases.z_sem.dtype == np.float32
    np.testing.assert_array_equal(cases.z_sem, z_matrix(expected))
    assert index.update(trained, images) == IndexUpdate()


def test_only_changed_scans_are_encoded_again_and_those_gone_are_removed(trained, images, index, tmp_path):
    index.update(trained, images)
    moved = shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    images = {name: moved / path.name for name, path in images.items()}
    assert index.update(trained, images) == IndexUpdate()
    before = rows(index.read(trained))
    a, b, c = sorted(images)[:3]
    shutil.copy(images[b], images[a])
    del images[c]
    encoded = []
    hook = trained.network.encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    assert index.update(trained, images) == IndexUpdate(changed=[a], removed=[c])
    hook.remove()
    assert len(encoded) == 1
    after = rows(index.read(trained))
    assert after.keys() == before.keys() - {c}
    np.testing.assert_array_equal(after[a], before[b])
    np.testing.assert_array_equal(after[b], before[b])


@pytest.mark.goal(id="R24")
def test_a_scan_that_was_exchanged_for_one_of_the_same_size_and_time_is_encoded_again(trained, images, index):
    """As when files of an archive, which gives all its files one time, are unpacked under the wrong names."""
    a, b = sorted(images)[:2]
    one, two = images[a].read_bytes(), images[b].read_bytes()
    size = max(len(one), len(two))  # readers ignore bytes after the image

    def write(scans):
        for name, scan in scans.items():
            images[name].write_bytes(scan.ljust(size, b"\0"))
            os.utime(images[name], (1e9, 1e9))

    write({a: one, b: two})
    index.update(trained, images)
    before = rows(index.read(trained))
    write({a: two, b: one})
    assert index.update(trained, images).changed == [a, b]
    after = rows(index.read(trained))
    np.testing.assert_array_equal(after[a], before[b])
    np.testing.assert_array_equal(after[b], before[a])


def test_a_bad_scan_is_listed_and_tried_again_only_when_its_file_changes(trained, images, index, caplog):
    bad, missing, good = sorted(images)[:3]
    images[bad].write_bytes(b"no scan")
    images[missing].unlink()
    update = index.update(trained, images)
    assert update.failed.keys() == {bad, missing}
    assert index.read(trained).failures == update.failed
    content = b"".join(file.read_bytes() for file in index.folder.rglob("*") if file.is_file())
    assert b"Doe" not in content  # the files' names
    assert str(index.folder.parent).encode() not in content
    assert all("/" not in reason for reason in update.failed.values())
    assert index.read(trained).ids == sorted(images.keys() - update.failed.keys())
    caplog.clear()
    assert index.update(trained, images) == IndexUpdate()
    assert "skipped" not in caplog.text
    shutil.copy(images[good], images[bad])
    shutil.copy(images[good], images[missing])
    assert index.update(trained, images) == IndexUpdate(changed=[bad, missing])
    assert index.read(trained).failures == {}


def test_removed_cases_can_come_back(trained, images, index):
    index.update(trained, images)
    name = min(images)
    z = rows(index.read(trained))[name]
    index.remove([name, "unknown"])
    assert index.read(trained).ids == sorted(images.keys() - {name})
    assert index.update(trained, images) == IndexUpdate(new=[name])
    assert len([*index.folder.rglob("*.parquet")]) == 1  # parts do not pile up
    np.testing.assert_array_equal(rows(index.read(trained))[name], z)
    with pytest.raises(ConfigError, match="^ids: must be a list of texts; put a single id into a list"):
        index.remove("12")  # not the cases 1 and 2
    for given, message in (({1: "a.nii"}, "the id 1 is not text"), ({"a": {"a.nii", "b.nii"}}, "case 'a' has no path")):
        with pytest.raises(ConfigError, match=f"^images: {message}"):
            index.update(trained, given)
    next(index.folder.rglob("*.parquet")).write_bytes(b"junk")
    with pytest.raises(
        ConfigError, match=r"^\w+/part-[\w-]+\.parquet: is damaged .*; delete it, and update the index again"
    ):
        index.read(trained)


def test_models_and_preprocessings_never_mix(labelled, trained, images, index, tmp_path):
    other_folder = shutil.copytree(labelled.bundle, tmp_path / "other")
    rewrite(other_folder, scaled(1.01))
    other = load_bundle(other_folder, "cpu")
    brighter = load_bundle(labelled.bundle, "cpu", {"percentiles": [5.0, 95.0]})
    slower = load_bundle(labelled.bundle, "cpu", {"inferer#steps": 7})
    index.update(trained, images)
    assert index.read(other).ids == index.read(brighter).ids == []
    assert index.read(other).z_sem.shape[0] == 0
    assert index.update(slower, images) == IndexUpdate()  # decoding does not change z_sem
    few = dict(list(images.items())[:3])
    assert index.update(other, few).new == sorted(few)
    assert index.update(brighter, few).new == sorted(few)
    gone = max(few)
    del few[gone]
    assert index.update(other, few) == IndexUpdate(removed=[gone])
    assert len(index.read(trained).ids) == len(images)  # those that are gone for one model stay for another
    name = min(few)
    codes = [rows(index.read(each))[name] for each in (trained, other, brighter)]
    assert len(np.unique(codes, axis=0)) == 3
    index.keep_only([other, trained])
    assert [len(index.read(each).ids) for each in (trained, other, brighter)] == [len(images), 2, 0]


def test_a_volume_in_a_2d_bundle_is_the_mean_of_its_slices(labelled, trained, images, index, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"v{i}": rng.gamma(2, 50, size=(12, 12, 10 + i)) for i in range(4)}
    arrays["v1"][..., 5] = 7  # a constant slice is left out of the mean
    arrays["v2"][:] = 7
    for name, array in arrays.items():
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([12, 12, 12, 1])), tmp_path / f"{name}.nii")
    (tmp_path / "v3.nii").write_bytes(b"no scan")
    picture = min(images)
    paths = {name: tmp_path / f"{name}.nii" for name in arrays} | {picture: images[picture]}
    table = pd.DataFrame({"image": [str(path) for path in paths.values()], "id": list(paths), "split": "train"})
    table.to_csv(tmp_path / "cohort.csv", index=False)
    pooled = read_embeddings(
        embed(labelled.bundle, tmp_path / "cohort.csv", tmp_path / "out", pool="mean", device="cpu").path
    ).sort_values("id")
    update = index.update(trained, paths, batch_size=1)
    assert update.new == pooled["id"].tolist() == sorted([picture, "v0", "v1"])
    assert update.failed.keys() == {"v2", "v3"}
    assert update.failed["v2"].startswith("slice ")
    np.testing.assert_array_equal(index.read(trained).z_sem, z_matrix(pooled))


def test_of_two_threads_one_waits(trained, images, index):
    with ThreadPoolExecutor() as pool:
        updates = [pool.submit(EmbeddingIndex(index.folder).update, trained, images) for _ in range(2)]
    assert sorted(len(update.result().new) for update in updates) == [0, len(images)]


def test_after_an_interruption_the_work_so_far_is_there(trained, images, index):
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    hook = trained.network.encoder.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        index.update(trained, images, batch_size=4)
    hook.remove()
    before = rows(EmbeddingIndex(index.folder).read(trained))
    assert len(before) == 8
    update = EmbeddingIndex(index.folder).update(trained, images)
    assert update.new == sorted(images.keys() - before.keys())
    after = rows(index.read(trained))
    assert len(after) == 12
    for name, z in before.items():
        np.testing.assert_array_equal(after[name], z)
