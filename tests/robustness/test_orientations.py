"""Goal R10: the model sees one image and the result lies where the scan lay, whatever the file's format and axes."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import make_plane
from hypothesis import example, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from scipy.spatial.transform import Rotation

from monai_diffae.data.formats.itk import to_image
from monai_diffae.data.scans import Scan
from monai_diffae.transforms import NativeSpace, write_native

pytestmark = pytest.mark.goal(id="R10")

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffae_3d" / "configs" / "train.json"
ORIENTATIONS = ["".join(c) for axes in itertools.permutations(("LR", "PA", "IS")) for c in itertools.product(*axes)]
FEW = ["RAS", "LPS", "ASR", "SPL", "IRP", "PIL"]  # each order of the axes, with several directions
SIZE = (20, 18, 16)


def _turn(degrees):
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


GEOMETRIES = {
    "isotropic": (np.eye(3), (2.0, 2.0, 2.0)),
    "1:5": (np.eye(3), (1.0, 1.0, 5.0)),
    "oblique": (_turn((12, -9, 17)), (2.0, 2.0, 2.0)),
}


def _smooth():
    x, y, z = np.meshgrid(*(np.linspace(0, 1, n) for n in SIZE), indexing="ij")
    return np.round(400 + 300 * np.sin(3 * x + y) * np.cos(2 * y - z) + 100 * z).astype(np.int16)


def save_as(kind, path, array, affine):
    """A volume ``[X, Y, Z]`` of int16 as NIfTI (``sform``, ``qform``, ``both``), ``nrrd``, ``mha`` or ``dicom``."""
    lps, spacing = np.diag([-1.0, -1, 1, 1]) @ affine, np.linalg.norm(affine[:3, :3], axis=0)
    path = path.with_suffix({"nrrd": ".nrrd", "mha": ".mha", "dicom": ""}.get(kind, ".nii"))
    if kind == "dicom":
        path.mkdir()
        tags = {"PixelSpacing": [f"{v:.14g}" for v in spacing[1::-1]]}
        for k in range(array.shape[2]):
            position, directions = (lps @ [0, 0, k, 1])[:3], np.round((lps[:3, :2] / spacing[:2]).T.ravel(), 12)
            make_plane(position, directions, k + 1, stored=array[..., k].T, **tags).save_as(path / f"{k}.dcm")
    elif kind in ("nrrd", "mha"):
        sitk.WriteImage(to_image(path, array[None], affine), str(path))
    else:
        image = nib.Nifti1Image(array, None)
        image.header.set_zooms(spacing)
        image.set_sform(*((affine, 1) if kind != "qform" else (None, 0)))
        image.set_qform(*((affine, 1) if kind != "sform" else (None, 0)))
        nib.save(image, path)
    return path


KINDS = ("sform", "qform", "both", "nrrd", "mha", "dicom")


@settings(max_examples=20, deadline=None)
@example(kind="dicom", code="LPS", degrees=(45, 0, 0), spacing=(1, 1, 1), error=1e-6, seed=0)
@example(kind="sform", code="SAL", degrees=(0, 0, 45), spacing=(1, 1, 1), error=1e-6, seed=1)
@example(kind="nrrd", code="RAS", degrees=(0, 0, 0), spacing=(1, 1, 1), error=-1e-6, seed=2)
@given(
    kind=st.sampled_from(KINDS),
    code=st.sampled_from(FEW),
    degrees=st.sampled_from([(0, 0, 0), (30, 0, 0), (12, -9, 17), (0, 45, 0), (0, 0, 45), (45, 0, 45)]),
    spacing=st.sampled_from([(1, 1, 1), (0.9, 1.05, 1.2), (0.4, 0.4, 5)]),
    error=st.sampled_from([0, 1e-7, -1e-7, 1e-6, -1e-6]),
    seed=st.integers(0, 9),
)
def test_rounding_of_the_affine_does_not_move_the_grid(tmp_path_factory, kind, code, degrees, spacing, error, seed):
    """Of 36 voxels of 1 mm, 13.5 of 2.8 mm are made, and of a tilt by 45 degrees either axis is the closest."""
    rng, affine = np.random.default_rng(seed), np.eye(4)
    affine[:3, :3], affine[:3, 3] = _turn(degrees) * spacing, (-17.25, 4.5, 101.75)
    array = np.round(500 * rng.random((36, 22, 15))).astype(np.int16)
    preprocessing = _preprocessing([2.8, 2.8, 2.8], [16, 12, 12])
    expected = NativeSpace(preprocessing, {"image": Scan(array[None].astype(np.float32), affine)})
    image = nib.Nifti1Image(array, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(code))
    image = image.as_reoriented(turn)
    rounded = image.affine + error * rng.uniform(-1, 1, (4, 4)) * [[1, 1, 1, 50]] * [[1], [1], [1], [0]]
    path = save_as(kind, tmp_path_factory.mktemp("scan") / "a", np.asarray(image.dataobj), rounded)
    native = NativeSpace(preprocessing, {"image": str(path)})
    assert native.image.shape == expected.image.shape
    assert float((native.image - expected.image).abs().max()) < 2e-4
    back, scan = (nib.Nifti1Image(n.back(n.image)[0], n.scan.affine) for n in (native, expected))
    back = back.as_reoriented(nib.orientations.io_orientation(np.linalg.inv(affine) @ back.affine))
    np.testing.assert_allclose(back.get_fdata(), scan.get_fdata(), atol=0.5)


def _preprocessing(spacing_mm, image_size):
    parser = ConfigParser()
    parser.read_config(str(BUNDLE))
    parser.update({"dataset_dir": ".", "spacing_mm": spacing_mm, "image_size": image_size})
    return parser.get_parsed_content("preprocessing")


@pytest.mark.parametrize(
    ("geometry", "orientations"),
    [
        ("1:5", FEW),
        ("oblique", FEW),
        *(pytest.param(geometry, ORIENTATIONS, marks=pytest.mark.slow) for geometry in GEOMETRIES),
    ],
)
def test_all_orientations_are_one_image(tmp_path, geometry, orientations, record_property):
    turn, spacing = GEOMETRIES[geometry]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, (-17.25, 4.5, 101.75)
    image = nib.Nifti1Image(_smooth(), affine)
    image.header.set_xyzt_units("mm", "sec")
    preprocessing = _preprocessing([1.0, 1.0, 1.0], [20, 18, 80] if geometry == "1:5" else [40, 36, 32])
    first, largest, worst = None, 0.0, 0.0
    for code in orientations:
        ornt = nib.orientations.axcodes2ornt(code)
        turned = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), ornt))
        source = tmp_path / f"{code}.nii"
        nib.save(turned, source)
        before = nib.load(source)
        assert "".join(nib.aff2axcodes(before.affine)) == code
        native = NativeSpace(preprocessing, {"image": str(source)})
        first = native.image if first is None else first
        largest = max(largest, float((native.image - first).abs().max()))
        made = nib.load(write_native(tmp_path / "back.nii", native.back(native.image), native.scan))
        assert made.shape == before.shape
        assert np.array_equal(made.affine, before.affine)
        assert made.get_data_dtype() == before.get_data_dtype()
        for field in ("sform_code", "qform_code", "xyzt_units"):
            assert made.header[field] == before.header[field]
        worst = max(worst, float(np.abs(made.get_fdata() - before.get_fdata())[native.field].mean()))
    record_property(
        "figure", f"{geometry}, {len(orientations)} orientations: at most {largest:.1g} apart, mean error {worst:.1f}"
    )
    assert largest < 1e-5
    assert worst < 8  # 1 % of the range
