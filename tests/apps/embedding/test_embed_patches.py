"""Scans larger than the model's field of view, cut into patches."""

import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from monai.transforms import Compose
from PIL import Image
from scan_files import shared

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.embedding.patches import PatchCutter
from monai_diffae.apps.provenance import check_same_model
from monai_diffae.apps.synthesis.traverse import traverse
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.embeddings import label_columns, read_embeddings, z_matrix
from monai_diffae.errors import CohortError, ConfigError

MM = ["x_mm", "y_mm", "z_mm"]
SPACING = {"spacing_mm": [3.0, 3.0, 3.0], "intensity": "none"}  # fields of 48 mm; no voxel affects the value of another


def oblique(spacing_mm=3.0):
    """An affine of three turns, a mirrored axis and an origin far away."""
    turns = [np.deg2rad(angle) for angle in (20, -35, 65)]
    matrix = np.eye(3)
    for axis, turn in enumerate(turns):
        i, j = (k for k in range(3) if k != axis)
        turned = np.eye(3)
        turned[i, i] = turned[j, j] = np.cos(turn)
        turned[i, j], turned[j, i] = -np.sin(turn), np.sin(turn)
        matrix = turned @ matrix
    affine = np.eye(4)
    affine[:3, :3] = matrix @ np.diag([-spacing_mm, spacing_mm, spacing_mm])
    affine[:3, 3] = [70.0, -120.0, 33.0]
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


@pytest.fixture
def cut(tiny_bundle_3d, tmp_path):
    """Embeds a cohort by patches: (the result, the table of the scans, that of the patches)."""

    def run(cohort, name="out", overlap=0.0, overrides=SPACING, **options):
        result = embed(
            tiny_bundle_3d.directory, cohort, tmp_path / name, patches=True, overlap=overlap, device="cpu",
            overrides=overrides, **options,
        )  # fmt: skip
        return result, read_embeddings(result.path), read_embeddings(result.patches)

    return run


def test_the_tables_have_one_row_per_scan_and_per_patch(cut, tmp_path):
    cohort = write(tmp_path / "c", {"a": noise((40, 32, 16)), "b": noise((20, 33, 10), 1)})
    result, scans, patches = cut(cohort)
    assert (result.num_cases, result.num_failed) == (2, 0)
    assert result.patches == tmp_path / "out" / "embeddings_patches.parquet"
    assert list(scans.columns[:6]) == ["id", "patient", "split", "age", "patches", "empty_patches"]
    assert scans["patches"].tolist() == [3 * 2 * 1, 2 * 3 * 1]
    assert list(patches.columns[:7]) == ["id", "patient", "split", "patch", *MM]
    assert patches.groupby("id")["patch"].apply(list).to_dict() == {"a": list(range(6)), "b": list(range(6))}
    assert label_columns(scans) == ["age"]
    assert label_columns(patches) == []
    for row in range(2):
        scan_z = z_matrix(patches[patches["id"] == scans["id"][row]])
        assert len(np.unique(scan_z[:, 0])) == 6
        np.testing.assert_array_equal(z_matrix(scans)[row], scan_z.astype(np.float64).mean(axis=0).astype(np.float32))


def test_the_grid_is_centred_on_the_scan(cut, tmp_path):
    _, _, patches = cut(write(tmp_path / "c", {"a": noise((16, 20, 40))}), overlap=0.5)
    # 16 voxels are one field; 20 are padded to 24, two steps of 8; 40 are four
    assert sorted(patches["x_mm"].unique()) == [22.5]
    assert sorted(patches["y_mm"].unique()) == [16.5, 40.5]
    assert sorted(patches["z_mm"].unique()) == [22.5, 46.5, 70.5, 94.5]


@pytest.mark.parametrize("shape", [(16, 16, 16), (6, 16, 10)])
def test_a_scan_no_larger_than_the_field_of_view_is_one_patch(cut, tiny_bundle_3d, tmp_path, caplog, shape):
    cohort = write(tmp_path / "c", {"a": noise(shape)}, oblique())
    _, scans, patches = cut(cohort, overlap=0.25)
    assert "every scan is one patch: after preprocessing, none is larger than the model's field of view" in caplog.text
    whole = read_embeddings(
        embed(tiny_bundle_3d.directory, cohort, tmp_path / "w", device="cpu", overrides=SPACING).path
    )
    np.testing.assert_array_equal(z_matrix(scans), z_matrix(whole))
    np.testing.assert_array_equal(z_matrix(patches), z_matrix(whole))
    centre = oblique() @ [*((np.array(shape) - 1) / 2), 1]
    np.testing.assert_allclose(patches[MM].to_numpy()[0], centre[:3], atol=0.01)


def test_a_local_change_changes_only_the_patches_there(cut, tmp_path):
    affine, volume = oblique(), noise((48, 48, 48))
    landmark = affine @ [6, 40, 22, 1]
    cube = volume.copy()
    cube[4:9, 38:43, 20:25] = 1
    _, _, before = cut(write(tmp_path / "before", {"a": volume}, affine), "z_before")
    _, _, after = cut(write(tmp_path / "after", {"a": cube}, affine), "z_after")
    moved = np.linalg.norm(z_matrix(after) - z_matrix(before), axis=1)
    distance_mm = np.linalg.norm(before[MM].to_numpy() - landmark[:3], axis=1)
    assert len(before) >= 27
    assert moved.argmax() == distance_mm.argmin()
    assert distance_mm.min() < 24 * np.sqrt(3)
    # resampling reaches a voxel or two beyond the cube, and no further patch
    assert (moved > 0).sum() <= 8
    assert not moved[distance_mm > 24 * np.sqrt(3) + 12].any()


def test_patches_of_slices_have_the_volumes_world_coordinates(labelled, tmp_path):
    bundle = finer(labelled.bundle, tmp_path)
    affine, volume = oblique(), noise((32, 24, 4))
    landmark = affine @ [25, 4, 2, 1]
    spot = volume.copy()
    spot[23:28, 2:7, 2] = 1
    tables = []
    for name, array in {"before": volume, "after": spot}.items():
        cohort = write(tmp_path / name, {"a": array}, affine)
        overrides = {"slice_range": [0.0, 1.0], "slice_step": 1, "intensity": "none"}
        made = embed(
            bundle, cohort, tmp_path / f"z_{name}", patches=True, overlap=0.5, device="cpu", overrides=overrides
        )
        tables.append(read_embeddings(made.patches))
    before, after = tables
    moved = np.linalg.norm(z_matrix(after) - z_matrix(before), axis=1)
    assert before["id"][moved > 0].nunique() == 1
    distance_mm = np.linalg.norm(before[MM].to_numpy() - landmark[:3], axis=1)
    nearest = before.iloc[distance_mm.argmin()]
    assert moved[distance_mm.argmin()] > 0
    assert nearest["id"] in set(before["id"][moved > 0])
    assert distance_mm.min() < 16 * 3 / 2 * np.sqrt(2)


def finer(bundle, folder):
    """The 2D bundle at twice its resolution: its longest side is scaled to two fields."""
    copied = shutil.copytree(bundle, folder / "finer")
    config = json.loads((copied / "models" / "config.json").read_text())
    config["preprocessing"]["transforms"][2]["spatial_size"] = 32
    (copied / "models" / "config.json").write_text(json.dumps(config))
    return copied


def test_patches_of_pictures_have_pixel_but_no_world_coordinates(labelled, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    made = embed(finer(labelled.bundle, tmp_path), tmp_path / "a.png", tmp_path / "z.csv", patches=True, overlap=0.0)
    patches = read_embeddings(made.patches)
    assert made.patches.name == "z_patches.csv"
    assert patches["row_px"].tolist() == [31.5, 31.5]
    assert patches["column_px"].tolist() == [31.5, 95.5]
    assert patches[MM].isna().all(axis=None)
    assert label_columns(patches) == []


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


def test_patches_are_the_same_whatever_the_batch_the_order_and_the_workers(cut, tmp_path):
    volumes = {f"v{i}": noise((20 + 6 * i, 30, 16), i) for i in range(5)}
    cohort = write(tmp_path / "c", volumes)
    _, scans, patches = cut(cohort, overlap=0.25)
    turned = pd.read_csv(cohort).iloc[[4, 1]]
    turned.to_csv(tmp_path / "c" / "turned.csv", index=False)
    for name, options in {"one": {"batch_size": 1}, "many": {"batch_size": 100}, "workers": {"workers": 2}}.items():
        _, other_scans, other_patches = cut(cohort, name, overlap=0.25, **options)
        pd.testing.assert_frame_equal(other_scans, scans, check_exact=True)
        pd.testing.assert_frame_equal(other_patches, patches, check_exact=True)
    _, some_scans, some_patches = cut(tmp_path / "c" / "turned.csv", "turned", overlap=0.25)
    np.testing.assert_array_equal(z_matrix(some_scans), z_matrix(scans.iloc[[4, 1]]))
    alone = some_patches[some_patches["id"] == "v1"].drop(columns="split")
    expected = patches[patches["id"] == "v1"].drop(columns="split")
    pd.testing.assert_frame_equal(alone.reset_index(drop=True), expected.reset_index(drop=True), check_exact=True)


def test_an_interrupted_run_resumes_and_a_complete_one_is_skipped(cut, tmp_path, written):
    cohort = write(tmp_path / "c", {f"v{i}": noise((20, 20, 16), i) for i in range(10)})
    written.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        cut(cohort)
    result, scans, patches = cut(cohort)
    assert written == [0, 1, 2]
    assert not result.skipped
    _, expected_scans, expected_patches = cut(cohort, "in_one_go")
    pd.testing.assert_frame_equal(scans, expected_scans, check_exact=True)
    pd.testing.assert_frame_equal(patches, expected_patches, check_exact=True)
    assert cut(cohort)[0].skipped
    result.patches.unlink()
    assert not cut(cohort)[0].skipped


@pytest.mark.slow
def test_processes_share_a_cohort_and_the_tables_are_the_same(tiny_bundle_3d, tmp_path):
    cohort = write(tmp_path / "c", {f"v{i}": noise((20, 20, 16), i) for i in range(9)})
    options = [
        "-m", "monai_diffae.cli", "--quiet", "embed", "--bundle", tiny_bundle_3d.directory, "--cohort", cohort,
        "--patches", "--device", "cpu", "--overrides", "spacing_mm=[3,3,3]", "--out",
    ]  # fmt: skip
    shared_out, alone = tmp_path / "shared.parquet", tmp_path / "alone.parquet"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for words in ([*torchrun, *options, shared_out], [*options, alone]):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *map(str, words)], check=True, env=env, timeout=300)
    for suffix in ("", "_patches"):
        pair = [pd.read_parquet(tmp_path / f"{name}{suffix}.parquet") for name in ("shared", "alone")]
        pd.testing.assert_frame_equal(*pair, check_exact=True)


def test_tables_of_other_kinds_are_not_taken_for_one_another(cut, tiny_bundle_3d, tmp_path):
    cohort = write(tmp_path / "c", {"a": noise((20, 20, 16))})
    result, *_ = cut(cohort)
    with pytest.raises(ConfigError, match=r"embeddings\.parquet: exists and was made with other overlap; set"):
        cut(cohort, overlap=0.5)
    for path in (result.path, result.patches):
        with pytest.raises(ConfigError, match=rf"{path.name}: exists and was made with other pool; set"):
            embed(tiny_bundle_3d.directory, cohort, path, device="cpu", overrides=SPACING)


def test_only_z_sem_of_single_patches_can_be_decoded(cut, tiny_bundle_3d, tmp_path):
    result, *_ = cut(write(tmp_path / "c", {"a": noise((20, 20, 16))}))
    refused = (
        r"embeddings\.parquet: its z_sem are averages, which do not belong to single images; embed the cohort without "
        "patches"
    )
    with pytest.raises(ConfigError, match=refused):
        traverse(tiny_bundle_3d.directory, result.path, tmp_path / "traversed")
    check_same_model(result.patches, tiny_bundle_3d.directory)


def test_labels_with_reserved_names_are_renamed(cut, tmp_path):
    cohort = write(tmp_path / "c", {"a": noise((20, 20, 16)), "b": noise((20, 20, 16), 1)})
    pd.read_csv(cohort).assign(patches=7, patch=8, x_mm=9).to_csv(cohort, index=False)
    _, scans, patches = cut(cohort)
    assert label_columns(scans) == ["age", "label_patches", "label_patch", "x_mm"]
    assert scans["patches"].tolist() == [4, 4]
    assert label_columns(patches) == []


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 50, float("nan")])
def test_an_invalid_overlap_is_refused(cut, tiny_bundle_3d, tmp_path, overlap):
    with pytest.raises(
        ConfigError,
        match=r"^overlap: (\S+ is (below 0|not below 1)|nan cannot be used: input should be a finite number)",
    ):
        cut(tiny_bundle_3d.cohort, overlap=overlap)
    assert not (tmp_path / "out").exists()


def test_an_overlap_without_patches_is_refused(run, tiny_bundle_3d, tmp_path):
    options = ["--bundle", tiny_bundle_3d.directory, "--cohort", tiny_bundle_3d.cohort, "--out", tmp_path / "o"]
    message = "overlap: applies to patches; set patches too, or omit overlap"
    typed = "--overlap: applies to patches; set --patches too, or omit --overlap"
    assert run("embed", *options, "--overlap", "0.25")[::2] == (2, f"error: {typed}\n")
    with pytest.raises(ConfigError, match=f"^{message}$"):
        embed(tiny_bundle_3d.directory, tiny_bundle_3d.cohort, tmp_path / "o", overlap=0.25)
    assert not (tmp_path / "o").exists()


def test_patches_are_not_pooled_twice(labelled, tmp_path):
    with pytest.raises(ConfigError, match="^pool: patches are averaged already; omit pool or patches"):
        embed(labelled.bundle, labelled.cohort, tmp_path, pool="mean", patches=True, device="cpu")


def test_a_preprocessing_that_does_not_end_with_a_crop_is_refused(tiny_bundle_3d):
    trained = load_bundle(tiny_bundle_3d.directory, "cpu")
    steps = trained.preprocessing.transforms
    trained.preprocessing = Compose(steps[:-1])
    with pytest.raises(ConfigError, match="^patches: the bundle's preprocessing of 'image' must begin with Read"):
        PatchCutter(trained, "image", 0.25)
    with pytest.raises(ConfigError, match=r"^overlap: 1 is not in \[0, 1\); give a fraction of the patch size"):
        PatchCutter(trained, "image", 1.0)
    trained.preprocessing = Compose([*steps[:-2], steps[-1], steps[-2]])
    with pytest.raises(ConfigError, match="and end with ResizeWithPadOrCropd, which patches replace"):
        PatchCutter(trained, "image", 0.25)


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


def test_nothing_but_bad_scans_is_an_error(cut, tmp_path):
    cohort = write(tmp_path / "c", {"a": noise((20, 20, 16))})
    (tmp_path / "c" / "a.nii").write_bytes(b"no scan")
    with pytest.raises(CohortError, match="all 1 cases failed, the first is 'a'"):
        cut(cohort)
    assert not (tmp_path / "out" / "embeddings.parquet").exists()


def test_the_command_names_both_tables(run, tiny_bundle_3d, tmp_path):
    options = ["--bundle", tiny_bundle_3d.directory, "--cohort", write(tmp_path / "c", {"a": noise((40, 20, 16))})]
    more = ["--device", "cpu", "--overrides", "spacing_mm=[3,3,3]", "--overlap", "0.5", "--patches"]
    code, printed, _ = run("--quiet", "embed", *options, *more, "--out", tmp_path / "o")
    assert (code, printed.split()) == (
        0,
        [str(tmp_path / "o" / f"embeddings{suffix}.parquet") for suffix in ("", "_patches")],
    )
    assert read_embeddings(tmp_path / "o" / "embeddings.parquet")["patches"].item() == 4 * 2
    # in a process of its own, because cyclopts checks values itself once pydantic is imported
    command = [sys.executable, "-m", "monai_diffae.cli", "embed", *options, "--out", tmp_path / "p", "--patches"]
    done = subprocess.run([*map(str, command), "--overlap", "2"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --overlap: 2.0 is not below 1\n")


def test_a_real_head_is_larger_than_the_field_and_its_patches_lie_in_it(cut, tmp_path):
    folder = shared("studyforrest_t1")
    _, scans, patches = cut(folder, overrides={"spacing_mm": [4.0, 4.0, 4.0]})
    assert scans["patches"].item() == len(patches) > 40
    image = nib.load(next(folder.glob("*.nii.gz")))
    centres = (np.linalg.inv(image.affine) @ np.c_[patches[MM], np.ones(len(patches))].T)[:3].T
    # the grid may be half a step, 24 mm, wider than the head
    assert np.logical_and(centres > -12, centres < np.array(image.shape) + 12).all()
    assert np.ptp(centres, axis=0).min() > 60
