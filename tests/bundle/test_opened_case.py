from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scan_files import shared

from monai_diffae.bundle import load_bundle
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.scans import write_scan
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.inferers import Reconstructor, encode_exactly

OBLIQUE = np.array([[-0.9, 0.1, 0.3, 40.0], [0.1, 1.1, -0.2, -70.0], [0.1, 0.2, 2.9, 13.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def trained(tiny_bundle):
    return load_bundle(tiny_bundle.directory, "cpu")


@pytest.fixture(scope="module")
def picture(tiny_bundle):
    return next(iter(read_cohort(tiny_bundle.cohort)[0].images.values()))


@pytest.fixture
def volume(tmp_path):
    array = np.random.default_rng(0).random((1, 14, 20, 12)) * 900
    return write_scan(tmp_path / "sub-1_T1w.nii.gz", array, OBLIQUE)


def test_a_picture_has_one_image_with_the_codes_of_embed(trained, picture):
    case = trained.open(picture)
    assert case.id == picture.stem
    assert case.images.shape == (1, 1, 16, 16)
    expected = trained.preprocessing({"image": str(picture)})["image"][None].as_tensor()
    assert torch.equal(case.images, expected)
    assert torch.equal(case.z_sem, encode_exactly(expected, trained.inferer, trained.network))
    assert case.z_sem is case.z_sem
    assert case.x_T is case.x_T


def test_reconstructions_are_those_of_the_reconstructor(trained, picture):
    case = trained.open(picture)
    for mode in ("z_sem", "x_T"):
        expected = Reconstructor(trained.inferer, mode, seed=3)(case.images, trained.network)
        assert torch.equal(case.reconstruct(mode, seed=3), expected)
    assert torch.equal(case.decode(case.z_sem, case.x_T), case.reconstruct("x_T"))


def test_draws_are_averaged_and_depend_on_the_seed(trained, picture):
    case = trained.open(picture)
    first, mean = case.reconstruct(), case.reconstruct(draws=5)
    assert torch.equal(mean, case.reconstruct(draws=5))
    assert not torch.equal(mean, first)
    assert not torch.equal(mean, case.reconstruct(draws=5, seed=1))
    with pytest.raises(ConfigError, match="^draws is 0; it must be a whole number, at least 1$"):
        case.reconstruct(draws=0)
    with pytest.raises(ConfigError, match="^draws is 2, but mode x_T has no noise; use 1, or mode z_sem$"):
        case.reconstruct("x_T", draws=2)


def test_steps_are_chosen_per_call(trained, picture):
    case = trained.open(picture)
    expected = Reconstructor(trained.inferer.replace(steps=2, invert_steps=2))(case.images, trained.network)
    assert torch.equal(case.reconstruct("x_T", steps=2), expected)
    assert torch.equal(case.decode(case.z_sem, case.invert(steps=2), steps=2), expected)
    assert not torch.equal(case.reconstruct("x_T"), expected)


def test_arrays_in_memory_are_opened_like_their_file(trained, volume):
    case = trained.open(volume)
    meta = MetaTensor(torch.from_numpy(case.scan.array), affine=torch.from_numpy(case.scan.affine))
    for image in (meta, case.scan):
        other = trained.open(image)
        assert other.id == ""
        np.testing.assert_array_equal(other.scan.affine, case.scan.affine)
        assert torch.equal(other.z_sem, case.z_sem)
    plain = trained.open(case.scan.array, id="mine")
    assert plain.id == "mine"
    np.testing.assert_array_equal(plain.scan.affine, np.eye(4))


def test_a_volume_in_a_2d_bundle_comes_back_as_the_volume(trained, volume, tmp_path):
    case = trained.open(volume)
    assert case.slices == [4, 6]  # of 12 slices the middle 30 %, every second
    assert case.images.shape == (2, 1, 16, 16)
    for i, index in enumerate(case.slices):
        one = trained.open(volume, slice=index)
        assert torch.equal(one.z_sem[0], case.z_sem[i])
        torch.testing.assert_close(one.reconstruct()[0], case.reconstruct()[i])
    back = case.back(case.reconstruct())
    written = case.write(tmp_path / "out.nii.gz", back)
    assert nib.load(written).shape == nib.load(volume).shape
    assert np.array_equal(nib.load(written).affine, nib.load(volume).affine)
    assert nib.load(written).get_data_dtype() == np.float32


@pytest.mark.parametrize(
    ("image", "arguments", "error", "message"),
    [
        ("", {}, ScanError, "^the path of a scan is empty; "),
        ([], {}, ScanError, "^image: the list of files is empty; "),
        (3, {}, ScanError, "^image: it is of type int; give a path, "),
        (np.full((1, 8, 8), np.nan), {}, ScanError, "^image: 64 of its voxels are NaN or infinite; "),
        (np.zeros((1, 8, 8)), {}, ScanError, "^image: every voxel has the same value "),
        (np.ones((1, 1, 1, 8, 8)), {}, ScanError, r"^image: it has 5 axes, expected \[C, H, W\] or "),
        (np.eye(8)[[0] * 4][None][0].reshape(2, 2, 8), {}, ScanError, "^image: it has 2 channels, expected 1; "),
        (np.eye(8)[None], {"slice": 2}, ConfigError, "^slice: is 2, but the image is 2D and has no slices; "),
        (np.eye(8)[None], {"slice": 0.5}, ConfigError, "^slice is 0.5; it must be a whole number$"),
        ({"other": "a.png"}, {}, ConfigError, "^image: the bundle takes the images image, but got other; "),
        ("nothing.nii.gz", {}, ScanError, "^nothing.nii.gz: there is no such file; "),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_is_named_in_one_line(trained, image, arguments, error, message):
    with pytest.raises(error, match=message):
        trained.open(image, **arguments)


def test_real_whole_head(trained, tmp_path):
    file = next(shared("studyforrest_t1").glob("*.nii.gz"))
    case = trained.open(file)
    back = case.back(case.reconstruct())
    used = np.zeros(back.shape[1:], bool)
    used[:, :, case.slices] = True
    assert not (back != case.scan.array)[0][~used].any()
    assert np.corrcoef(case.back(case.images)[0][used], case.scan.array[0][used])[0, 1] > 0.9
    assert np.array_equal(nib.load(case.write(tmp_path / "a.nii", back)).affine, nib.load(file).affine)
