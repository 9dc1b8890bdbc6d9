import shutil
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import make_plane, positions, save_enhanced, save_planes
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from scan_files import refusal, save_series, shared

from monai_diffae.data.formats.dicom import read_patient
from monai_diffae.data.scans import read_scan, read_shape
from monai_diffae.errors import ScanError


@pytest.mark.parametrize("suffix", [".dcm", "", ".IMA"])
def test_series_in_spatial_order(tmp_path, suffix):
    scan = read_scan(save_series(tmp_path / "ct", suffix=suffix), spatial_dims=3, channels=1)
    assert scan.array.shape == (1, 6, 4, 5)
    assert scan.modality == "CT"
    np.testing.assert_allclose(scan.spacing_mm, (0.5, 0.75, 2))
    assert [int(v) for v in scan.array[0, 0, 0]] == [0, 100, 200, 300, 400]
    assert read_shape(tmp_path / "ct") == (6, 4, 5)


def test_two_series_are_told_apart(tmp_path):
    save_series(tmp_path / "ct", 5, "1.2.3", "a")
    save_series(tmp_path / "ct", 3, "1.2.4", "b")
    assert "2 DICOM series" in refusal(tmp_path / "ct")
    assert read_scan(f"{tmp_path / 'ct'}#series=1.2.4").array.shape == (1, 6, 4, 3)
    assert "UID" in refusal(f"{tmp_path / 'ct'}#series=9")


@pytest.mark.goal(id="R5")
def test_defective_series(tmp_path):
    whole = save_series(tmp_path / "whole")
    gap = shutil.copytree(whole, tmp_path / "gap")
    (gap / "003.dcm").unlink()
    assert "slice is missing" in refusal(gap)
    doubled = shutil.copytree(whole, tmp_path / "doubled")
    shutil.copy(doubled / "003.dcm", doubled / "copy.dcm")
    assert "the same position" in refusal(doubled)
    cut = shutil.copytree(whole, tmp_path / "cut")
    (cut / "002.dcm").write_bytes((cut / "002.dcm").read_bytes()[:-20])
    assert "002.dcm" in refusal(cut)
    junk = shutil.copytree(whole, tmp_path / "junk")
    (junk / "006.dcm").write_bytes(b"not DICOM")
    assert "not readable DICOM" in refusal(junk)
    (tmp_path / "none").mkdir()
    assert "no readable DICOM" in refusal(tmp_path / "none")


def test_slices_of_two_patients_are_no_volume(tmp_path):
    """Tools that remove names may give every series one UID; the slices of two patients then lie in one stack."""

    def change(k, dataset):
        dataset.PatientID = "MRN-0043" if k % 2 else "MRN-0042 "

    folder = save_planes(tmp_path / "ct", positions(), change=change)
    line = "ct: its slices have the PatientIDs of 2 patients; keep the files of one patient only"
    assert refusal(folder) == line
    with pytest.raises(ScanError, match="2 patients"):
        read_shape(folder)
    whole = save_planes(tmp_path / "whole", positions(), change=lambda k, d: setattr(d, "PatientID", "" if k else "7"))
    assert read_scan(whole).array.shape[-1] == 5


def _padded_ct(folder, **tags):
    """A CT in whose slices the first column is padding of -2000, with an intercept of -1024."""

    def change(k, dataset):
        pixels = np.frombuffer(dataset.PixelData, np.int16).reshape(dataset.Rows, dataset.Columns).copy()
        pixels[:, 0] = -2000
        dataset.PixelData = pixels.tobytes()
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        for keyword, value in tags.items():
            dataset.add_new(keyword, "SS", value)

    return save_planes(folder, positions(), change=change)


@pytest.mark.goal(id="R9")
def test_padding_becomes_the_lowest_measured_value(tmp_path):
    """Padding of -2000 lies far below air, and would move percentiles and windows."""
    plain = read_scan(_padded_ct(tmp_path / "plain")).array
    is_padding = plain == -3024
    assert is_padding.any()
    for name, tags in {"value": (-2000,), "range": (-2100, -1900)}.items():
        keywords = ("PixelPaddingValue", "PixelPaddingRangeLimit")
        array = read_scan(_padded_ct(tmp_path / name, **dict(zip(keywords, tags, strict=False)))).array
        lowest = plain[~is_padding].min()
        assert lowest > -3024
        np.testing.assert_array_equal(array, np.where(is_padding, lowest, plain))


def test_padding_of_an_enhanced_file_is_found_through_the_scaling_of_its_frames(tmp_path):
    path = save_enhanced(tmp_path / "mr.dcm", positions(), slopes=[2.0] * 5)
    whole = read_scan(path).array
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array.copy()
    pixels[..., 0] = -2000
    dataset.PixelData = pixels.tobytes()
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    dataset.save_as(path)
    array = read_scan(path).array
    is_padding = array != whole
    assert is_padding.mean() == pytest.approx(1 / 10)
    np.testing.assert_array_equal(array[is_padding], array[~is_padding].min())


def test_a_declared_padding_that_tissue_has_too_is_kept(tmp_path):
    plain = read_scan(save_planes(tmp_path / "plain", positions())).array
    middle = int(np.sort(plain.ravel())[plain.size // 2])

    def change(k, dataset):
        dataset.add_new("PixelPaddingValue", "SS", middle)

    np.testing.assert_array_equal(read_scan(save_planes(tmp_path / "ct", positions(), change=change)).array, plain)


@pytest.mark.goal(id="R9")
def test_values_that_a_table_converts_are_refused(tmp_path):
    """GDCM ignores the ModalityLUTSequence, and would return stored values."""

    def change(k, dataset):
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [2, 0, 16], "US", bytes(4)
        dataset.ModalityLUTSequence = [table]

    folder = save_planes(tmp_path / "us", positions(), change=change)
    for path in (folder, sorted(folder.iterdir())[0]):
        line = refusal(path)
        assert (
            "a table converts its stored values (ModalityLUTSequence), which is not supported; export it with" in line
        )
        with pytest.raises(ScanError, match="ModalityLUTSequence"):
            read_shape(path)


def test_radiograph_and_monochrome1(tmp_path):
    folder = save_series(tmp_path / "dx", 1, modality="DX")
    path = folder / "001.dcm"
    scan = read_scan(path, spatial_dims=2)
    assert scan.array.shape == (1, 4, 6) == (1, *read_shape(path))
    np.testing.assert_array_equal(scan.array[0], np.arange(24).reshape(4, 6))
    np.testing.assert_allclose(scan.spacing_mm, (0.75, 0.5))
    data = path.read_bytes()
    assert data.count(b"MONOCHROME2") == 1
    path.write_bytes(data.replace(b"MONOCHROME2", b"MONOCHROME1"))
    inverted = read_scan(path).array[0]
    np.testing.assert_array_equal(inverted - inverted.min(), 23 - np.arange(24).reshape(4, 6))


def test_real_dicom_is_read_whole():
    scan = read_scan(shared("dicom_mr_brain_pgbm003") / "11-T1post-18670", spatial_dims=3, channels=1)
    assert scan.array.shape == (1, 280, 320, 22)
    np.testing.assert_allclose(scan.spacing_mm, (0.6875, 0.6875, 6.5), rtol=1e-4)
    scan = read_scan(shared("hippocampus_hcrop_dicom") / "Study1_13_HCropVolume")
    assert scan.array.shape == (1, 35, 51, 32)


@pytest.mark.goal(id="R5")
def test_real_dicom_cut_anywhere(tmp_path):
    file = next(shared("hippocampus_hcrop_dicom").glob("*/1.dcm"))
    data = file.read_bytes()
    for part in (0.0, 0.05, 0.3, 0.7, 0.999):
        (tmp_path / "cut.dcm").write_bytes(data[: int(part * len(data))])
        refusal(tmp_path / "cut.dcm")


def _with_implicit_elements(file):
    """Write a file's elements again, implicit, although its transfer syntax says explicit."""
    content, dataset, elements = file.read_bytes(), pydicom.dcmread(file), DicomBytesIO()
    elements.is_little_endian, elements.is_implicit_VR = True, True
    write_dataset(elements, dataset)
    start = content.index(b"\x08\x00\x08\x00CS")  # behind the elements of group 2
    file.write_bytes(content[:start] + elements.getvalue())
    return file


@pytest.mark.parametrize("kind", ["file", "series", "frames"])
def test_implicit_elements_under_an_explicit_transfer_syntax_are_read_at_once_with_a_warning(tmp_path, kind, caplog):
    """GDCM (in SimpleITK 2.5) needs 4 s for each of these files."""
    if kind == "frames":
        path = save_enhanced(tmp_path / "ct.dcm", positions())
    else:
        folder = save_planes(tmp_path / "ct", positions(n=1 if kind == "file" else 5))
        path = folder / "000.dcm" if kind == "file" else folder
    right, shape = read_scan(path), read_shape(path)
    assert not caplog.records
    for file in [path] if path.is_file() else path.iterdir():
        _with_implicit_elements(file)
    before = time.process_time()
    wrong = read_scan(path)
    assert time.process_time() - before < 1
    assert np.array_equal(wrong.array, right.array)
    assert np.array_equal(wrong.affine, right.affine)
    assert (read_shape(path), wrong.modality) == (shape, right.modality)
    line = "its elements are implicit, but its transfer syntax says explicit"
    assert caplog.messages == [f"{path.name}: {line}; they are read as implicit"]
    assert f"{line}; set its TransferSyntaxUID to 1.2.840.10008.1.2" in refusal(path, doubtful="refuse")


def test_implicit_elements_under_another_transfer_syntax_are_refused_at_once(tmp_path):
    make_plane((0.0, 0.0, 0.0), little_endian=True).save_as(tmp_path / "a.dcm")
    file = _with_implicit_elements(tmp_path / "a.dcm")
    file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))  # RLE
    before = time.process_time()
    assert "its elements are implicit, but its transfer syntax says explicit" in refusal(file)
    assert time.process_time() - before < 1


def test_a_name_that_is_too_long_for_a_file_has_no_patient():
    assert read_patient(Path("x" * 300)) is None
