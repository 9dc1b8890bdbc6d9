"""Goal R10: whatever the order of a file's axes, the model sees one image, and the result lies where the scan lay."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from monai_diffae.data.scans import read_scan
from monai_diffae.transforms import NativeSpace, write_native

pytestmark = pytest.mark.goal(id="R10")

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffae_3d" / "configs" / "train.json"
ORIENTATIONS = [
    "".join(code) for axes in itertools.permutations(("LR", "PA", "IS")) for code in itertools.product(*axes)
]
FEW = ["RAS", "LPS", "ASR", "SPL", "IRP", "PIL"]  # each order of the axes, with several directions
SIZE = (20, 18, 16)


def _turn(degrees: tuple[float, float, float]) -> np.ndarray:
    x, y, z = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


GEOMETRIES = {
    "isotropic": (np.eye(3), (2.0, 2.0, 2.0)),
    "1:5": (np.eye(3), (1.0, 1.0, 5.0)),
    "oblique": (_turn((12, -9, 17)), (2.0, 2.0, 2.0)),
}


def _smooth() -> np.ndarray:
    x, y, z = np.meshgrid(*(np.linspace(0, 1, n) for n in SIZE), indexing="ij")
    return np.round(400 + 300 * np.sin(3 * x + y) * np.cos(2 * y - z) + 100 * z).astype(np.int16)


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
    parser = ConfigParser()
    parser.read_config(str(BUNDLE))
    size = [20, 18, 80] if geometry == "1:5" else [40, 36, 32]
    parser.update({"dataset_dir": ".", "spacing_mm": [1.0, 1.0, 1.0], "image_size": size})
    preprocessing = parser.get_parsed_content("preprocessing")
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
        "figure",
        f"{geometry}, {len(orientations)} orientations: at most {largest:.1g} apart, mean error {worst:.1f}",
    )
    assert largest < 1e-5
    assert worst < 8  # 1 % of the range


@pytest.mark.parametrize(
    ("dtype", "codes", "units"),
    [
        (np.uint8, (1, 0), "mm"), (np.int16, (0, 1), "micron"), (np.uint16, (1, 1), "meter"),
        (np.int32, (4, 2), "mm"), (np.float32, (1, 1), "mm"),
    ],
)  # fmt: skip
def test_type_codes_and_units_are_kept(tmp_path, dtype, codes, units):
    affine = np.array([[0, -1.5, 0, 3], [2.0, 0, 0, -7], [0, 0, 4, 1.25], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.arange(240, dtype=dtype).reshape(6, 8, 5), affine)
    for name, code in zip(("sform", "qform"), codes, strict=True):
        getattr(image, f"set_{name}")(affine if code else None, code)
    image.header.set_xyzt_units(units)
    nib.save(image, tmp_path / "in.nii.gz")
    scan = read_scan(tmp_path / "in.nii.gz")
    before, made = nib.load(tmp_path / "in.nii.gz"), nib.load(write_native(tmp_path / "out.nii.gz", scan.array, scan))
    assert np.array_equal(made.affine, before.affine)
    assert made.get_data_dtype() == before.get_data_dtype()
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert made.header[field] == before.header[field]
    np.testing.assert_array_equal(made.get_fdata(), before.get_fdata())
