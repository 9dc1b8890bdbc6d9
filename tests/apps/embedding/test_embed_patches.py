"""Scans larger than the model's field of view, cut into patches."""

import json
import shutil
import sys
from itertools import product
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_bundles import rewrite

from monai_diffae import embed, load_bundle
from monai_diffae.data.embeddings import label_columns, read_embeddings, z_matrix
from monai_diffae.errors import ConfigError, ScanError

MM = ["x_mm", "y_mm", "z_mm"]
SIDE = 16


def affine_of(angles=(20, -35, 65), mirrored=(-1, 1, 1)):
    """An affine with voxels of 3 mm, rotated, permuted and mirrored axes, and an origin far away."""
    affine = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(angles)):
        turn, (i, j) = np.eye(4), [k for k in range(3) if k != axis]
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        affine = turn @ affine
    affine[:3, :3] *= 3.0 * np.array(mirrored)
    affine[:3, 3] = 70, -120, 33
    return affine


def noise(shape, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def write(folder, volumes, affine=None):
    """Writes volumes ``{id: array}`` and their table, with a label."""
    folder.mkdir(exist_ok=True)
    for name, array in volumes.items():
        nib.save(nib.Nifti1Image(array, np.diag([3, 3, 3, 1]) if affine is None else affine), folder / f"{name}.nii")
    table = pd.DataFrame({"image": [f"{name}.nii" for name in volumes], "id": list(volumes), "split": "train"})
    table.assign(age=range(len(table))).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def bundle(tiny_bundle_3d, tmp_path_factory):
    """The 3D bundle with fields of 48 mm; no voxel affects the value of another."""
    copied = shutil.copytree(tiny_bundle_3d.directory, tmp_path_factory.mktemp("bundle") / "bundle")
    rewrite(copied, spacing_mm=[3.0, 3.0, 3.0], intensity="none")
    return copied


@pytest.fixture
def cut(bundle, tmp_path):
    """Embeds a cohort by patches: (the result, the table of the scans, that of the patches)."""

    def run(cohort, name="out", overlap=0.0, **options):
        result = embed(bundle, cohort, tmp_path / name, patches=True, overlap=overlap, device="cpu", **options)
        return result, read_embeddings(result.path), read_embeddings(result.patches)

    return run


def test_the_tables_have_one_row_per_scan_and_per_patch(cut, tmp_path):
    cohort = write(tmp_path / "c", {"a": noise((40, 32, 16)), "b": noise((20, 33, 10), 1)})
    pd.read_csv(cohort).assign(patches=7, patch=8, x_mm=9).to_csv(cohort, index=False)
    result, scans, patches = cut(cohort)
    assert (result.num_cases, result.num_failed) == (2, 0)
    assert result.patches == tmp_path / "out" / "embeddings_patches.parquet"
    assert list(scans.columns[:3]) == ["id", "patient", "split"]
    assert scans["age"].tolist() == [0, 1]
    assert label_columns(scans) == ["age", "label_patches", "label_patch", "x_mm"]
    assert scans["patches"].tolist() == [3 * 2 * 1, 2 * 3 * 1]
    assert list(patches.columns[:7]) == ["id", "patient", "split", "patch", *MM]
    assert patches.groupby("id")["patch"].apply(list).to_dict() == {"a": list(range(6)), "b": list(range(6))}
    assert label_columns(patches) == []
    for row in range(2):
        scan_z = z_matrix(patches[patches["id"] == scans["id"][row]])
        assert len(np.unique(scan_z[:, 0])) == 6
        np.testing.assert_array_equal(z_matrix(scans)[row], scan_z.astype(np.float64).mean(axis=0).astype(np.float32))


@pytest.mark.parametrize(("angles", "step"), [((0, 0, 0), 16), ((20, -35, 65), 12), ((80, 5, -100), 16)])
def test_a_patch_has_the_voxels_around_its_position(cut, bundle, tmp_path, angles, step):
    """Compared with an independent computation from the file's affine with nibabel and numpy."""
    volume = noise((19, 40, 13))
    image = nib.Nifti1Image(volume, affine_of(angles, (-1, 1, -1)))
    nib.save(image, tmp_path / "a.nii")
    _, _, patches = cut(tmp_path / "a.nii", overlap=1 - step / SIDE)

    upright = nib.as_closest_canonical(image)
    voxels = upright.get_fdata(dtype=np.float32)
    steps = [max(0, -(-(length - SIDE) // step)) for length in voxels.shape]
    before = [(SIDE + step * n - length) // 2 for n, length in zip(steps, voxels.shape, strict=True)]
    starts = [np.array(at) * step - before for at in product(*(range(n + 1) for n in steps))]
    assert any((start < 0).any() for start in starts)
    assert len(patches) == len(starts) > 2

    places = [upright.affine @ [*(start + (SIDE - 1) / 2), 1] for start in starts]
    np.testing.assert_allclose(patches[MM], np.array(places)[:, :3], atol=1e-3)
    padded = np.pad(voxels, SIDE, constant_values=-1.0)
    windows = [padded[tuple(slice(s + SIDE, s + 2 * SIDE) for s in start)] for start in starts]
    trained = load_bundle(bundle, "cpu")
    z_sem = trained.inferer.encode(torch.from_numpy(np.stack(windows))[:, None], trained.network).numpy()
    np.testing.assert_allclose(z_matrix(patches), z_sem, rtol=1e-3, atol=1e-4 * np.abs(z_sem).max())
    assert np.ptp(z_sem, axis=0).max() > 1e-2 * np.abs(z_sem).max()


@pytest.mark.parametrize("shape", [(16, 16, 16), (6, 16, 10)])
def test_a_scan_no_larger_than_the_field_of_view_is_one_patch(cut, bundle, tmp_path, caplog, shape):
    cohort = write(tmp_path / "c", {"a": noise(shape)}, affine_of())
    _, scans, patches = cut(cohort, overlap=0.25)
    assert "every scan is one patch: after preprocessing, none is larger than the model's field of view" in caplog.text
    assert ("48 x 48 x 48 mm: 77% of its images are padding" in caplog.text) == (shape != (16, 16, 16))
    whole = embed(bundle, cohort, tmp_path / "w", device="cpu").path
    np.testing.assert_array_equal(z_matrix(scans), z_matrix(read_embeddings(whole)))
    np.testing.assert_array_equal(z_matrix(patches), z_matrix(scans))
    centre = affine_of() @ [*((np.array(shape) - 1) / 2), 1]
    np.testing.assert_allclose(patches[MM].to_numpy()[0], centre[:3], atol=0.01)


def finer(bundle, folder):
    """The 2D bundle at twice its resolution: its longest side is scaled to two fields."""
    copied = shutil.copytree(bundle, folder / "finer")
    preprocessing = load_bundle(copied, "cpu").config["preprocessing"]
    preprocessing["transforms"][2]["spatial_size"] = 32
    rewrite(copied, preprocessing=preprocessing)
    return copied


def test_patches_of_slices_have_the_volumes_world_coordinates(labelled, tmp_path):
    bundle = finer(labelled.bundle, tmp_path)
    affine, volume = affine_of(), noise((32, 24, 4))
    landmark = affine @ [25, 4, 2, 1]
    spot = volume.copy()
    spot[23:28, 2:7, 2] = 1
    tables = []
    for name, array in {"before": volume, "after": spot}.items():
        cohort = write(tmp_path / name, {"a": array}, affine)
        overrides = {"slice_range": [0.0, 1.0], "slice_step": 1, "intensity": "none"}
        options = {"patches": True, "overlap": 0.5, "device": "cpu", "overrides": overrides}
        tables.append(read_embeddings(embed(bundle, cohort, tmp_path / f"z_{name}", **options).patches))
    before, after = tables
    changed = np.linalg.norm(z_matrix(after) - z_matrix(before), axis=1) > 0
    assert before["id"][changed].nunique() == 1
    distance_mm = np.linalg.norm(before[MM].to_numpy() - landmark[:3], axis=1)
    assert changed[distance_mm.argmin()]
    assert distance_mm.min() < 16 * 3 / 2 * np.sqrt(2)


def test_patches_of_background_are_skipped_and_counted(cut, tmp_path):
    half = noise((32, 32, 32))
    half[:, :, 16:] = -1
    empty = np.full((32, 32, 32), -1, np.float32)
    empty[3, 3, 3] = -0.99
    cohort = write(tmp_path / "c", {"half": half, "empty": empty, "full": noise((32, 32, 32), 1)})
    result, scans, patches = cut(cohort)
    assert (result.num_cases, result.num_failed) == (2, 1)
    assert scans[["id", "patches", "empty_patches"]].to_numpy().tolist() == [["half", 4, 4], ["full", 8, 0]]
    assert patches["patch"][patches["id"] == "half"].tolist() == [0, 2, 4, 6]
    reason = pd.read_csv(tmp_path / "out" / "failures.csv")["reason"].item()
    assert reason.startswith("image: all patches are background; check intensity")


def test_a_kill_between_the_two_tables_leaves_no_old_one_that_counts_as_complete(cut, tmp_path, monkeypatch):
    module = sys.modules["monai_diffae.apps.embedding.embed"]
    write_record, cohort = module.write_record, write(tmp_path / "c", {"a": noise((20, 20, 20))})

    def killed(command, out, made_from, figures=None, *arguments, **more):
        write_record(command, out, made_from, figures, *arguments, **more)
        if figures is not None:
            raise KeyboardInterrupt

    cut(cohort)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            cut(cohort, overwrite=True)
    assert not cut(cohort)[0].skipped


def test_patches_are_the_same_whatever_the_batch_the_order_and_the_workers(cut, tmp_path):
    cohort = write(tmp_path / "c", {f"v{i}": noise((20 + 6 * i, 18, 16), i) for i in range(3)})
    _, scans, patches = cut(cohort, overlap=0.25)
    for name, options in {"one": {"batch_size": 1}, "workers": {"workers": 1, "batch_size": 100}}.items():
        _, other_scans, other_patches = cut(cohort, name, overlap=0.25, **options)
        pd.testing.assert_frame_equal(other_scans, scans, check_exact=True)
        pd.testing.assert_frame_equal(other_patches, patches, check_exact=True)
    table = pd.read_csv(cohort)
    table.iloc[[2, 1]].to_csv(cohort, index=False)
    _, some_scans, some_patches = cut(cohort, "turned", overlap=0.25)
    np.testing.assert_array_equal(z_matrix(some_scans), z_matrix(scans.iloc[[2, 1]]))
    alone, expected = (each[each["id"] == "v1"].drop(columns="split") for each in (some_patches, patches))
    pd.testing.assert_frame_equal(alone.reset_index(drop=True), expected.reset_index(drop=True), check_exact=True)


def test_a_scan_that_could_not_be_read_at_first_is_the_same_scan_later(bundle, tmp_path, monkeypatch):
    cohort = write(tmp_path / "c", {"a": noise((20, 20, 20)), "b": noise((20, 20, 20), 1)})
    with monkeypatch.context() as away:
        away.setattr("monai_diffae.data.streamed.item_hash", lambda item: "")
        away.setattr("monai_diffae.data.streamed.preprocessed", Mock(side_effect=ScanError("a.nii: is away")))
        embed(bundle, cohort, tmp_path / "out", patches=True, part="1/1", device="cpu")
    made = [embed(bundle, cohort, tmp_path / name, patches=True, device="cpu").path for name in ("out", "fresh")]
    later, fresh = (json.loads(path.with_suffix(".json").read_text())["scans"] for path in made)
    assert later == fresh


@pytest.mark.parametrize("unusual", ["two_modalities"], indirect=True)
def test_the_image_that_the_encoder_sees_is_cut(unusual, tmp_path):
    bundle = finer(unusual.bundle, tmp_path)
    table = pd.read_csv(unusual.cohort)
    for key in ("image", "encoder_image"):
        table[key] = [str(unusual.cohort.parent / file) for file in table[key]]
    tables = {}
    for name, other in {"own": {}, "image": {"image": table["image"][::-1].tolist()}}.items():
        table.assign(**other).to_csv(tmp_path / "c.csv", index=False)
        made = embed(bundle, tmp_path / "c.csv", tmp_path / name, patches=True, overlap=0.0, device="cpu")
        tables[name] = read_embeddings(made.patches)
    assert len(tables["own"]) == 4 * 10
    pd.testing.assert_frame_equal(tables["image"], tables["own"], check_exact=True)


def test_what_cannot_be_cut_is_refused(bundle, tmp_path):
    cohort = write(tmp_path / "c", {"a": noise((20, 20, 16))})
    with pytest.raises(ConfigError, match="^pool: patches are averaged already; omit pool or patches"):
        embed(bundle, cohort, tmp_path / "out", pool="mean", patches=True, device="cpu")
