"""Commands on volumes, with a 3D bundle: all that they write lies in the scan's space, or in the model's grid."""

import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from dicom_files import AXIAL, make_plane, positions
from PIL import Image
from tiny_bundles import rewrite

from monai_diffae import decode, generate, reconstruct
from monai_diffae.data.scans import read_scan

GRID = np.diag([14.0, 14.0, 14.0, 1.0])
CPU = {"device": "cpu", "steps": 2}


@pytest.fixture(scope="module")
def heads(tiny_bundle_3d, tmp_path_factory):
    """The tiny cohort."""
    root = tmp_path_factory.mktemp("heads")
    table = pd.read_csv(tiny_bundle_3d.cohort)
    table["image"] = [str(tiny_bundle_3d.cohort.parent / image) for image in table["image"]]
    table.to_csv(root / "cohort.csv", index=False)
    return SimpleNamespace(bundle=tiny_bundle_3d.directory, cohort=root / "cohort.csv", table=table)


def same_space(made, source):
    one, other = nib.load(made), nib.load(source)
    assert one.shape == other.shape
    assert np.array_equal(one.affine, other.affine)
    assert one.get_data_dtype() == (other.get_data_dtype() if one.get_fdata().min() >= 0 else np.int16)


def test_reconstruct_gives_scans_back_in_their_own_space_and_refuses_a_2d_image(heads, tmp_path, caplog):
    source = heads.table["image"][0]
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "a.png")
    pd.DataFrame({"image": [source, "a.png"], "id": ["v", "p"]}).to_csv(tmp_path / "c.csv", index=False)
    made = reconstruct(heads.bundle, tmp_path / "c.csv", tmp_path / "out", mode="both", dicom=True, **CPU)
    assert (made.num_cases, made.num_failed) == (1, 1)
    assert "a 2D image (16 x 16), expected a 3D volume" in (tmp_path / "out" / "failures.csv").read_text()
    assert "none of the cases is a DICOM file" in caplog.text
    for mode in ("x_T", "z_sem"):
        same_space(tmp_path / "out" / mode / "v.nii.gz", source)
    before, after = (nib.load(file).get_fdata() for file in (source, tmp_path / "out" / "x_T" / "v.nii.gz"))
    straight, *flipped = (np.corrcoef(before.ravel(), np.flip(after, axes).ravel())[0, 1] for axes in ((), 0, 1, 2))
    assert straight > max(0.9, *flipped)
    assert Image.open(tmp_path / "out" / "mosaic.png").width > 3 * 16  # three planes
    assert made.means["mse_x_T"] < made.means["mse_z_sem"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["variations", "generate"])
def test_images_of_no_scan_are_in_the_models_grid(name, heads, with_latent, tmp_path):
    if name == "generate":
        folder = generate(with_latent(heads.bundle), tmp_path / "o", num_images=2, **CPU).folder
    else:
        of_case = {"cohort": heads.cohort, "case": str(heads.table["id"][0])}
        folder = decode(heads.bundle, tmp_path / "o", show=name, num_images=2, **of_case, **CPU).folder
    files = sorted((folder / "images").glob("*.nii.gz"))
    assert len(files) == 2
    for file in [*files, *folder.glob("std.nii.gz")]:
        assert nib.load(file).shape == (16, 16, 16)
        assert np.array_equal(nib.load(file).affine, GRID)
    (picture,) = folder.glob("*.png")
    assert Image.open(picture).width > 3 * 16


def series(folder):
    """A DICOM series of 8 slices."""
    folder.mkdir(parents=True)
    for number, position in enumerate(positions(AXIAL, 8), 1):
        make_plane(position, AXIAL, number).save_as(folder / f"{9 - number}.dcm")
    return folder


def test_a_dicom_series_comes_back_as_nifti_and_as_a_series(heads, tmp_path):
    folder = series(tmp_path / "scans" / "head")
    bundle = shutil.copytree(heads.bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    rewrite(bundle, spacing_mm=[1.0, 1.0, 2.0], val_fraction=0.0)
    reconstruct(bundle, folder, tmp_path / "out", dicom=True, **CPU)
    before = read_scan(folder)
    (nifti,) = (tmp_path / "out" / "x_T").glob("*.nii.gz")
    assert nib.load(nifti).shape == before.array.shape[1:]
    assert np.array_equal(nib.load(nifti).affine, before.affine.astype(np.float32))
    (written,) = (tmp_path / "out" / "x_T" / "dicom").iterdir()
    after = read_scan(written)
    assert np.array_equal(after.affine, before.affine)
    np.testing.assert_allclose(after.array[0], np.asarray(nib.load(nifti).dataobj), atol=1)
    one, other = (pydicom.dcmread(next(path.glob("*.dcm"))) for path in (folder, written))
    assert one.SeriesInstanceUID != other.SeriesInstanceUID
    assert one.StudyInstanceUID == other.StudyInstanceUID
    assert other.SeriesDescription == "monai_diffae reconstruction from x_T"
    # the record beside it says nothing of whose it is
    assert "Planted" not in (tmp_path / "out" / "record.json").read_text()
