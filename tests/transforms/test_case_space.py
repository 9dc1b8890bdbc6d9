"""A whole case as images of a 2D model, and back into its volume."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Resized, ResizeWithPadOrCropd

from monai_diffae.data.scans import Scan
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.transforms import NativeSpace, ReadScand, ToModelRanged, write_native
from monai_diffae.transforms.native import CaseSpace
from monai_diffae.transforms.writing import read_image, write_image

ORIENTATIONS = ["".join(s) for axes in itertools.permutations(("LR", "PA", "IS")) for s in itertools.product(*axes)]


def preprocessing(size=(16, 16), axis="axial"):
    """As in bundles/diffae_2d."""
    return Compose([
        ReadScand("image", 2, axis=axis),
        ToModelRanged("image", method="minmax"),
        Resized("image", max(size), size_mode="longest", mode="bilinear", anti_aliasing=True),
        ResizeWithPadOrCropd("image", size, mode="constant", value=-1),
    ])  # fmt: skip


def oriented(array, spacing, codes):
    """A volume [X, Y, Z] in RAS order with this spacing, stored in another order of axes."""
    image = nib.Nifti1Image(array, np.diag([*spacing, 1.0]) + np.array([[0, 0, 0, v] for v in (7, -5, 2, 0)]))
    target = nib.orientations.axcodes2ornt(codes)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), target))


def all_slices(length):
    return range(length)


@pytest.mark.parametrize("codes", ORIENTATIONS[::5])
def test_slices_come_back_into_the_volume_whatever_its_orientation(tmp_path, codes):
    ras = np.random.default_rng(0).random((5, 7, 4)).astype(np.float32)
    nib.save(oriented(ras, (0.7, 1.1, 6.5), codes), tmp_path / "in.nii.gz")
    source = nib.load(tmp_path / "in.nii.gz")
    exact = Compose([ReadScand("image", 2), ToModelRanged("image", method="none", model_range=(0, 1))])
    space = CaseSpace(exact, {"image": str(tmp_path / "in.nii.gz")}, all_slices)
    images = space.inputs("image")
    assert images.shape == (4, 1, 7, 5)
    # the model sees the same slices whatever the order of the file's axes, from inferior to superior
    expected = np.stack([np.rot90(ras[::-1, :, k]) for k in range(4)])
    np.testing.assert_array_equal(images[:, 0].numpy(), expected)
    np.testing.assert_array_equal(space.back(images)[0], source.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(space.back_map(images * 3)[0], source.get_fdata(dtype=np.float32) * np.float32(3))
    written = nib.load(write_native(tmp_path / "out.nii.gz", space.back(images), space.scan))
    assert written.shape == source.shape
    assert np.array_equal(written.affine, source.affine)
    assert nib.aff2axcodes(written.affine) == tuple(codes)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_only_the_slices_in_use_are_filled(axis):
    volume = Scan(np.random.default_rng(1).random((1, 9, 8, 10)).astype(np.float32), np.diag([1.0, -2, 1, 1]))
    space = CaseSpace(preprocessing(axis=axis), {"image": volume}, lambda length: range(2, length - 1, 3))
    used = np.zeros((9, 8, 10), bool)
    along = np.moveaxis(used, {"sagittal": 0, "coronal": 1, "axial": 2}[axis], 0)
    along[list(space.spaces)] = True
    used = used[:, ::-1] if axis == "coronal" else used
    white, ones = torch.ones(len(space.spaces), 1, 16, 16), torch.ones(len(space.spaces), 2, 16, 16)
    np.testing.assert_array_equal(space.back(white)[0] == volume.array.min(), ~used)
    for array in (space.back_map(ones), space.back_mask(ones), space.field[None].repeat(2, 0)):
        np.testing.assert_array_equal(array > 0.999, np.stack([used, used]))
    assert ((space.back_difference(white) != 0)[0] == used).all()


def test_slices_that_cannot_be_used_are_skipped(caplog):
    array = np.random.default_rng(1).random((1, 9, 8, 6)).astype(np.float32)
    array[..., 4:] = 0
    space = CaseSpace(preprocessing(), {"image": array}, all_slices)
    assert list(space.spaces) == [0, 1, 2, 3]
    assert "2 of 6 slices are skipped; the first: " in caplog.text
    np.testing.assert_array_equal(space.back(space.inputs("image"))[..., 4:], 0)
    with pytest.raises(ScanError, match="^none of the 2 slices can be used; the first: "):
        CaseSpace(preprocessing(), {"image": array}, lambda _: (4, 5))


@pytest.mark.parametrize(("codes", "flat"), [("RAS", 2), ("LPI", 0), ("SAR", 1), ("ILP", 2)])
def test_a_volume_of_one_slice_is_one_image_and_comes_back_as_the_volume(tmp_path, codes, flat):
    shape = [6, 9, 8]
    shape[flat] = 1
    nib.save(oriented(np.random.default_rng(0).random(shape).astype("f4"), (1.0, 2.0, 3.0), codes), tmp_path / "a.nii")
    source = nib.load(tmp_path / "a.nii")
    exact = [ReadScand("image", 2), ToModelRanged("image", method="none", model_range=(0, 1))]
    space = CaseSpace(exact, {"image": str(tmp_path / "a.nii")}, lambda _: ())
    assert list(space.spaces) == [None]
    assert torch.equal(space.inputs("image")[0], exact[0]({"image": str(tmp_path / "a.nii")})["image"].as_tensor())
    native = NativeSpace(exact, {"image": str(tmp_path / "a.nii")})  # as ``reconstruct`` and ``edit`` write it
    for array, scan in ((space.back(space.inputs("image")), space.scan), (native.back(native.image), native.scan)):
        written = nib.load(write_native(tmp_path / "out.nii", array, scan))
        np.testing.assert_array_equal(written.get_fdata(), source.get_fdata())
        assert written.shape == source.shape
        assert np.array_equal(written.affine, source.affine)
    with pytest.raises(ConfigError, match="^slice: is 0, but the image is 2D and has no slices; leave it out$"):
        CaseSpace(exact, {"image": str(tmp_path / "a.nii"), "slice": 0}, all_slices)


def test_a_nifti_of_two_dimensions_stays_one(tmp_path):
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((12, 9)).astype(np.float32), np.diag([-2.0, 3, 1, 1])),
        tmp_path / "a.nii",
    )
    space = CaseSpace(preprocessing(), {"image": tmp_path / "a.nii"}, all_slices)
    written = nib.load(write_native(tmp_path / "out.nii", space.back(space.inputs("image")), space.scan))
    assert written.shape == (12, 9)
    assert np.array_equal(written.affine, nib.load(tmp_path / "a.nii").affine)


def test_several_images_are_sliced_together():
    pair = [ReadScand(["image", "other"], 2), ToModelRanged(["image", "other"], method="minmax")]
    volumes = {key: np.random.default_rng(seed).random((1, 4, 5, 6)) for seed, key in enumerate(("image", "other"))}
    space = CaseSpace(pair, volumes, all_slices)
    assert space.inputs("other").shape == (6, 1, 5, 4)
    np.testing.assert_allclose(space.back(space.inputs("image")), volumes["image"], rtol=1e-6)
    alone = CaseSpace(pair, {**volumes, "slice": 3}, all_slices)
    assert torch.equal(alone.inputs("other")[0], space.inputs("other")[3])
    with pytest.raises(ScanError, match="^slice 5 does not exist: the volume has 5 axial slices"):
        CaseSpace(pair, {**volumes, "other": volumes["other"][..., :5]}, all_slices)


@pytest.mark.parametrize("source", ["a.png", "a.nii"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_written_is_read_even_if_it_is_constant_or_grey(tmp_path, source, channels):
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 5, 7, generator=rng).expand(channels, -1, -1) * 4 - 2
    for image in (noise, torch.full((channels, 5, 7), -2.0)):
        file = write_image(tmp_path / "a", image, (-2.0, 2.0), source)
        made = read_image(file, (-2.0, 2.0))
        np.testing.assert_allclose(made.reshape(channels, 5, 7), image, atol=4 / 255 if source == "a.png" else 0)
