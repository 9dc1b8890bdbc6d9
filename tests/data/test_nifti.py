"""NIfTI of both versions and byte orders, alone or as pairs, with header extensions as AFNI and nibabel write them."""

import gzip
import struct
import warnings

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension
from scan_files import OBLIQUE, grown_mb, refusal, values

from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.scan_states import cohort_fingerprint
from monai_diffae.data.scans import ScanNeeds, read_scan, read_shape
from monai_diffae.errors import ScanError
from monai_diffae.transforms import write_native

AFNI = (4, b"<?xml version='1.0' ?>\n<AFNI_attributes>" + b"<AFNI_atr />" * 300 + b"</AFNI_attributes>\n")
COMMENT = (6, b"defaced by hand")
LARGE = (6, b"history " * 60_000)  # 480 kB
KINDS = {
    "afni": [AFNI],
    "several": [AFNI, COMMENT, (2, b"no DICOM at all"), (4242, bytes(range(256)))],
    "large first": [LARGE, COMMENT],
}


def image_class(path, version):
    if ".hdr" in path.name:
        return {1: nib.Nifti1Pair, 2: nib.Nifti2Pair}[version]
    return {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version]


def save(path, extensions, version=1):
    image = image_class(path, version)(values(5, 6, 7).astype(np.int16), OBLIQUE)
    image.header.extensions.extend(Nifti1Extension(code, content) for code, content in extensions)
    nib.save(image, path)
    return path


def assert_same_as_nibabel(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = nib.load(path)
    scan = read_scan(path, ScanNeeds(spatial_dims=3, channels=1))
    np.testing.assert_array_equal(scan.array[0], image.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(scan.affine, image.affine)
    order = np.argsort(nib.orientations.io_orientation(image.affine)[:, 0])
    assert read_shape(path) == tuple(image.shape[axis] for axis in order)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".hdr", ".hdr.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_voxels_and_affine_are_those_of_nibabel(tmp_path, version, suffix):
    for extensions in KINDS.values():
        assert_same_as_nibabel(save(tmp_path / f"a{suffix}", extensions, version))


@pytest.mark.parametrize(("version", "suffix"), [(1, ".nii.gz"), (2, ".hdr")])
def test_a_result_in_the_scans_own_space_has_its_type_and_no_extension(tmp_path, version, suffix):
    source = save(tmp_path / f"in{suffix}", [LARGE, (6, b"Doe^Jane")], version)
    scan = read_scan(source)
    path = write_native(tmp_path / "out.nii", scan.array + 1, scan)
    made, before = nib.load(path), nib.load(source)
    assert (made.shape, made.get_data_dtype()) == (before.shape, np.int16)
    assert (len(made.header.extensions), made.dataobj.offset) == (0, {1: 352, 2: 544}[version])
    np.testing.assert_array_equal(made.affine, before.affine)
    np.testing.assert_array_equal(made.get_fdata(), before.get_fdata() + 1)
    assert b"Doe^Jane" not in path.read_bytes()
    assert_same_as_nibabel(path)


def _patched(path, at, content):
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    data = data[:at] + content + data[at + len(content) :]
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_a_wrong_position_of_the_voxels_is_refused_and_takes_no_memory(tmp_path):
    for offset in (0, 16, 348):
        path = _patched(save(tmp_path / "a.nii", [COMMENT]), 108, struct.pack("<f", offset))
        assert f"voxels begin at byte {offset}" in refusal(path)
    path = _patched(save(tmp_path / "d.hdr", []), 108, struct.pack("<f", -16))
    assert "voxels begin at byte -16" in refusal(path)
    path = _patched(save(tmp_path / "a.nii", [COMMENT]), 108, struct.pack("<f", 2.0**30))
    with gzip.open(tmp_path / "a.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(path.read_bytes() + bytes(100 << 20))
    for bomb in (path, tmp_path / "a.nii.gz"):
        lines = []
        assert grown_mb(lambda bomb=bomb, lines=lines: lines.append(refusal(bomb))) < 40
        assert "voxels begin" in lines[0]


def test_truncated_pairs(tmp_path):
    path = save(tmp_path / "a.hdr", [AFNI, LARGE])
    voxels = tmp_path / "a.img"
    voxels.write_bytes(voxels.read_bytes()[:-1])
    assert "a.img: the file ends early (419 of 420 bytes)" in refusal(path)
    with pytest.raises(ScanError, match="ends early"):
        read_shape(path)
    voxels.unlink()
    assert "a.img" in refusal(path)
    with pytest.raises(ScanError, match=r"a\.img"):
        read_shape(path)


def test_a_pair_in_a_folder_is_one_case_and_its_fingerprint_covers_both_files(tmp_path):
    save(tmp_path / "a.hdr", [COMMENT])
    (case,) = read_cohort(tmp_path)
    assert (case.id, case.files) == ("a", [tmp_path / "a.hdr"])
    before = cohort_fingerprint([case])
    with (tmp_path / "a.img").open("ab") as file:
        file.write(b"more")
    assert cohort_fingerprint([case]) != before
