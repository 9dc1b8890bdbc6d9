"""A scan opened in a trained bundle: its codes, and the way back into its own space and file."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Flip, LoadImage, Orientation
from monai.utils import SpaceKeys
from PIL import Image
from scan_files import OBLIQUE, shared
from tiny_bundles import rewrite

from monai_diffae.bundle import checksum, load_bundle
from monai_diffae.data import read_cohort, write_scan
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import Reconstructor, encode_exactly


@pytest.fixture(scope="module")
def picture(tiny_bundle):
    return read_cohort(tiny_bundle.cohort)[0].first_file


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
    assert torch.equal(case.z_sem, encode_exactly(expected, trained.network, trained.inferer))


def test_an_edit_keeps_the_detail_of_the_scan_or_of_the_model(trained, picture):
    case = trained.open(picture)
    np.testing.assert_array_equal(case.edited(case.z_sem), case.scan.array)
    np.testing.assert_array_equal(case.edited(case.z_sem, detail="model"), case.back(case.reconstruct("x_T")))
    moved = case.z_sem + 1
    change = case.decode(moved, case.x_T) - case.decode(case.z_sem, case.x_T)
    np.testing.assert_array_equal(case.edited(moved), case.scan.array + case.back_difference(change))


def test_reconstructions_are_those_of_the_reconstructor(trained, picture):
    case = trained.open(picture)
    for mode in ("z_sem", "x_T"):
        expected = Reconstructor(trained.inferer, mode, seed=3)(case.images, trained.network)
        assert torch.equal(case.reconstruct(mode, seed=3), expected)
    assert torch.equal(case.decode(case.z_sem, case.x_T), case.reconstruct("x_T"))
    two = trained.inferer.replace(steps=2, invert_steps=2)
    expected = Reconstructor(two)(case.images, trained.network)
    assert torch.equal(case.reconstruct("x_T", steps=2), expected)
    assert torch.equal(case.decode(case.z_sem, case.invert(steps=2), steps=2), expected)
    assert not torch.equal(case.reconstruct("x_T"), expected)
    of_five = Reconstructor(trained.inferer, "z_sem", 3, 5)(case.images, trained.network)
    assert torch.equal(case.reconstruct(draws=5, seed=3), of_five)


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


def test_the_batch_size_of_the_bundle_changes_no_bit(trained, tiny_bundle, volume):
    other = load_bundle(tiny_bundle.directory, "cpu", {"inferer#batch_size": 1})
    for mode, draws in (("z_sem", 3), ("x_T", 1)):
        results = [bundle.open(volume).reconstruct(mode, draws=draws) for bundle in (trained, other)]
        assert torch.equal(*results)


@pytest.mark.parametrize("space", ["RAS", "LPS"])
def test_what_monai_reads_is_opened_like_the_file(trained, volume, space):
    image = LoadImage("NibabelReader", image_only=True, ensure_channel_first=True)(volume)
    if space == "LPS":  # as ITKReader(affine_lps_to_ras=False) and Orientation leave it
        image.affine = np.diag([-1.0, -1, 1, 1]) @ image.affine.numpy()
        image.meta["space"] = SpaceKeys.LPS
    case, expected = trained.open(image), trained.open(volume)
    np.testing.assert_allclose(case.scan.affine, expected.scan.affine, atol=1e-4)
    torch.testing.assert_close(case.images, expected.images)
    assert (case.back(case.images) == case.scan.array.min()).mean() > 0.7  # the slices that are not used
    turned = Orientation("SPL", labels=None)(image)  # an image that was changed is opened as it is now
    torch.testing.assert_close(trained.open(turned).images, expected.images)


@pytest.mark.parametrize("changed", [False, True])
def test_a_2d_image_in_memory_has_the_affine_of_the_scan(trained, volume, changed):
    one = trained.open(volume, slice=5)
    image = trained.preprocessing.transforms[0]({"image": str(volume), "slice": 5})["image"]
    case = trained.open(Flip(0)(image) if changed else image)
    assert np.array_equal(case.scan.affine, one.scan.affine) != changed
    assert case.scan.spacing_mm == pytest.approx(one.scan.spacing_mm)


def test_an_encoder_that_sees_another_image_gets_it(tiny_bundle, bundle):
    rewrite(bundle, lambda tensors: tensors, image_keys=["image", "late"], encoder_key="late")
    trained = load_bundle(bundle, "cpu")
    early, late = np.random.default_rng(0).random((2, 1, 20, 24))
    case = trained.open({"image": early, "late": late})
    plain = load_bundle(tiny_bundle.directory, "cpu")
    assert torch.equal(case.z_sem, plain.open(late).z_sem)
    assert torch.equal(case.images, plain.open(early).images)
    expected = Reconstructor(trained.inferer, "x_T").decode(case.images, trained.network, case.z_sem)[0]
    assert torch.equal(case.reconstruct("x_T"), expected)
    assert case.back(expected).shape == (1, 20, 24)
    with pytest.raises(ConfigError, match="^image: the bundle takes the images image, late, but got image; "):
        trained.open(early)


def test_a_folder_gives_no_id(trained):
    assert trained.open(shared("dicom_mr_brain_pgbm003") / "11-T1post-18670").id == ""  # it may name a patient


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("inferer#step", r"unknown config key 'inferer#step': \S+Inferer takes .*; did you mean 'steps'\?"),
        ("nope", "nope: the model's description has no such key; see monai-diffae info .*"),
    ],
)
def test_an_override_that_nothing_takes_is_named_in_one_line(tiny_bundle, key, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        load_bundle(tiny_bundle.directory, "cpu", overrides={key: 1})


def test_a_loaded_model_keeps_its_checksum_when_the_folder_gets_another_one(bundle):
    trained, file = load_bundle(bundle, "cpu"), bundle / "models" / "model.safetensors"
    before, content = trained.made_from, file.read_bytes()
    assert before == {"model": checksum(bundle)}
    rewrite(bundle, lambda tensors: tensors, percentiles=[1, 99])
    assert not trained.is_current()
    assert trained.made_from == before
    file.write_bytes(content)
    assert trained.is_current()


def test_a_file_is_a_bundle_without_its_folder(tiny_bundle, tmp_path):
    file = tmp_path / "any_name.safetensors"
    file.write_bytes((tiny_bundle.directory / "models" / "model.safetensors").read_bytes())
    assert load_bundle(file, "cpu").sha256 == checksum(file) == checksum(tiny_bundle.directory)
    assert load_bundle(file, "cpu").z_sem_usage == 1.0


def test_a_bundle_and_a_case_show_themselves_in_few_lines_and_a_picture_is_written_as_png(labelled, tmp_path):
    trained = load_bundle(labelled.bundle, "cpu")
    file = tmp_path / "scan.jpeg"
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(file)
    case = trained.open(file)
    assert len(repr(trained).splitlines()) <= 10
    assert trained.folder.name in repr(trained)
    assert repr(case).startswith("ModelCase 'scan': scan [1, 20, 20]")
    assert case._repr_html_().startswith('<img src="data:image/png;base64,')
    written = case.write(tmp_path / "x.png", case.scan.array)
    np.testing.assert_array_equal(np.asarray(Image.open(written)), np.asarray(Image.open(file)))
