"""What is written is complete or absent, has the geometry and type that was asked for, and does not wrap."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scan_files import OBLIQUE, no_file_larger_than, values

from monai_diffae.data.atomic import PartStore, remove_abandoned, write_atomic
from monai_diffae.data.scans import ScanNeeds, read_scan, write_scan
from monai_diffae.errors import ConfigError, MachineError

RNG = np.random.default_rng(0)


@pytest.mark.goal(id="R3")
@pytest.mark.goal(id="R16")
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail_with(error):
        def write(temporary):
            temporary.write_text("half")
            raise error

        return write

    for error in (ValueError("a bug"), OSError(errno.EBADF, "Bad file descriptor")):
        with pytest.raises(type(error), match=str(error.args[-1])):
            write_atomic(path, fail_with(error))
    with pytest.raises(MachineError, match=r"^a\.txt: cannot be written \(No space left on device\); free space"):
        write_atomic(path, fail_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.goal(id="R3")
@pytest.mark.parametrize("name", ["a.nrrd", "a.nii.gz", "a.png"])
def test_a_scan_that_does_not_fit_on_the_disk_is_named(tmp_path, name):
    array = RNG.random((1, 300, 300) if name == "a.png" else (1, 60, 60, 60))
    message = rf"^{re.escape(name)}: cannot be written.*; free space or choose"
    with no_file_larger_than(20_000), pytest.raises(MachineError, match=message):
        write_scan(tmp_path / name, array)
    assert not list(tmp_path.iterdir())


@pytest.mark.goal(id="R3")
def test_temporary_files_of_killed_processes_are_removed_and_those_of_others_stay(tmp_path):
    def start():
        read, write = os.pipe()

        def hang(path):
            path.write_text("half")
            os.write(write, path.name.encode())
            time.sleep(600)

        if (pid := os.fork()) == 0:
            write_atomic(tmp_path / "a.txt", hang)
        return pid, os.read(read, 200).decode()

    (running, name_of_running), (killed, _) = start(), start()
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    for name, age_days in ((".tmp-00000000-1-new.txt", 0), (".tmp-00000000-1-old.txt", 2), (".tmp-7-old.txt", 2)):
        (tmp_path / name).write_text("of another machine, or of an earlier version")
        os.utime(tmp_path / name, (time.time() - age_days * 86400,) * 2)
    remove_abandoned(tmp_path, tmp_path / "no_such_folder")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name_of_running, ".tmp-00000000-1-new.txt"])
    os.kill(running, signal.SIGKILL)
    os.waitpid(running, 0)


def test_written_scans_come_back(tmp_path):
    affine = nib.affines.from_matvec(np.diag([-1.0, 2, 3]), [5, 6, 7])
    volume = values(1, 3, 4, 5) * 1000
    scan = read_scan(write_scan(tmp_path / "v.nii.gz", volume, affine))
    np.testing.assert_array_equal(scan.array, volume)
    np.testing.assert_allclose(scan.affine, affine)
    assert nib.load(tmp_path / "v.nii.gz").header.get_xyzt_units()[0] == "mm"
    plane = values(1, 4, 6)
    np.testing.assert_array_equal(
        read_scan(write_scan(tmp_path / "p.nii.gz", plane), ScanNeeds(spatial_dims=2)).array, plane
    )


@settings(max_examples=12, deadline=None)
@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    origin=st.tuples(*[st.floats(-1000, 1000)] * 3),
    channels=st.sampled_from([1, 2]),
)
def test_nrrd_has_the_affine_and_voxels_of_the_array(tmp_path_factory, axes, signs, spacing, origin, channels):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * signs * np.array(spacing)
    affine[:3, 3] = origin
    array = RNG.random((channels, 3, 4, 5)).astype(np.float32)
    scan = read_scan(write_scan(tmp_path_factory.mktemp("nrrd") / "a.nrrd", array, affine))
    np.testing.assert_array_equal(scan.array, array)
    np.testing.assert_allclose(scan.affine, affine, rtol=1e-12, atol=1e-9)


def test_nrrd_of_oblique_and_flat_images_lies_where_the_nifti_lies(tmp_path):
    affine = OBLIQUE.copy()
    affine[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * (0.9, 1.1, 2.9)
    array = RNG.random((1, 3, 4, 5)).astype(np.float32)
    images = [sitk.ReadImage(str(write_scan(tmp_path / name, array, affine))) for name in ("a.nrrd", "a.nii")]
    place = (np.diag([-1, -1, 1, 1]) @ affine @ (2, 3, 4, 1))[:3]
    for image in images:
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((2, 3, 4)), place, rtol=1e-5)
    np.testing.assert_array_equal(*(sitk.GetArrayFromImage(image) for image in images))
    sheared = read_scan(write_scan(tmp_path / "a.nrrd", array, OBLIQUE))
    np.testing.assert_allclose(sheared.affine, OBLIQUE, atol=1e-9)
    array = array[..., 0]
    nrrd, nifti = (sitk.ReadImage(str(write_scan(tmp_path / name, array))) for name in ("b.nrrd", "b.nii"))
    assert nrrd.GetSize() == nifti.GetSize() == (3, 4, 1)
    assert nrrd.GetDirection() == nifti.GetDirection() == (0, 1, 0, 1, 0, 0, 0, 0, 1)  # as a viewer lays out a picture
    np.testing.assert_array_equal(sitk.GetArrayFromImage(nrrd)[0].T, array[0])


@pytest.mark.goal(id="R11")
def test_values_that_do_not_fit_are_clipped_and_counted(tmp_path, caplog):
    array = np.array([-1.0, 0.5, 1.5, 255.4, 256.0, 9e9]).reshape(1, 1, 2, 3)
    for suffix in (".nrrd", ".nii"):
        path = write_scan(tmp_path / f"a{suffix}", array, dtype=np.uint8)
        assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T.ravel().tolist() == [0, 0, 2, 255, 255, 255]
        assert f"a{suffix}: 3 voxels clipped to the range of uint8" in caplog.text
    largest = write_scan(tmp_path / "b.nrrd", array * 0 + 1e30, dtype=np.int64)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(largest))).min() > 9.2e18  # not wrapped to negative numbers
    write_scan(tmp_path / "a.png", np.array([[[-2.0, -1, 0, 1, 2]]]), value_range=(-1, 1))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("a.mha", np.uint8, r"a.mha: cannot hold an array \[1, 2, 3, 4\]; use .nii.gz or .nrrd"),
        ("a.png", np.uint8, r"a.png: cannot hold an array \[1, 2, 3, 4\]; use .nii.gz or .nrrd"),
        ("a.nrrd", np.float16, "a.nrrd: NRRD cannot hold float16; use float32 or an integer type"),
        ("a.nrrd", np.uint8, "a.nrrd: uint8 cannot hold values that are NaN or infinite; use float32"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, dtype, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        write_scan(tmp_path / name, np.full((1, 2, 3, 4), np.nan), dtype=dtype)
    assert not list(tmp_path.iterdir())


# -- a table that grows ------------------------------------------------------------------------------------------------


def rows(*ids: str, error: str | None = None, value: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame({"id": list(ids), "error": [error] * len(ids), "value": [value] * len(ids)})


def test_rows_of_several_processes_and_runs_are_one_table(tmp_path: Path) -> None:
    first, second = PartStore(tmp_path, "a", process=0), PartStore(tmp_path, "a", process=1)
    first.append(rows("a", "c"))
    second.append(rows("b", error="is empty"))
    resumed = PartStore(tmp_path, "a")
    assert resumed.done() == first.done() == {"a", "b", "c"}
    assert resumed.read()["error"].fillna("").tolist() == ["", "is empty", ""]
    assert sorted(ds.dataset(tmp_path).to_table(columns=["id"])["id"].to_pylist()) == ["a", "b", "c"]


def test_a_later_row_replaces_an_earlier_one_also_in_another_run(tmp_path: Path) -> None:
    PartStore(tmp_path, "a", process=3).append(rows("a", "b", value=1.0))
    PartStore(tmp_path, "a").append(rows("b", value=2.0))
    assert PartStore(tmp_path, "a").read()["value"].tolist() == [1.0, 2.0]
    PartStore(tmp_path, "a").merge(without=["a"])
    assert PartStore(tmp_path, "a").read()["value"].tolist() == [2.0]


def test_parts_of_other_settings_are_refused_or_replaced(tmp_path: Path) -> None:
    PartStore(tmp_path / "parts", {"size": [64, 64]}).append(rows("a"))
    PartStore(tmp_path / "parts", {"size": (64, 64)})
    with pytest.raises(ConfigError, match="parts: holds results of other settings or another model"):
        PartStore(tmp_path / "parts", {"size": (32, 32)})
    assert PartStore(tmp_path / "parts", {"size": (32, 32)}, replace=True).done() == set()


def test_another_process_has_removed_the_parts(tmp_path):
    store = PartStore(tmp_path / "parts", "a")
    store.append(rows("a"))
    PartStore(tmp_path / "parts", "a").remove()
    store.append(rows("b"))
    assert PartStore(tmp_path / "parts", "a").done() == {"b"}


def _append_forever(folder: Path) -> None:
    store = PartStore(folder, "a")
    for k in range(10**6):
        store.append(rows(*(f"{k}-{j}" for j in range(100))))


def test_a_killed_run_leaves_complete_parts_only(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_append_forever, args=(tmp_path,))
    process.start()
    while len(list(tmp_path.glob("part-*.parquet"))) < 5:
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    store = PartStore(tmp_path, "a")
    assert len(store.done()) == len(store.read()) >= 500
    assert len(store.done()) % 100 == 0
    assert not list(tmp_path.glob(".tmp-*"))
