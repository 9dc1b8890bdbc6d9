"""DICOM series that we write, and real scans: in the place of their source, with its tags, without wrapped values."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import OBLIQUE, make_plane, positions, save_enhanced, save_planes
from pydicom.data import get_testdata_file
from scan_files import as_nobody, shared

from monai_diffae.data.scan_writing import write_series
from monai_diffae.data.scans import ScanNeeds, read_scan
from monai_diffae.errors import ConfigError, MachineError, ScanError


def tags(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [pydicom.dcmread(file) for file in files]


def as_itk(folder):
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))


def assert_same_place(written, scan):
    again = read_scan(written)
    np.testing.assert_array_equal(again.affine, scan.affine)
    assert (again.array.shape, again.modality) == (scan.array.shape, scan.modality)


def test_round_trip_of_a_series(tmp_path):
    source = save_planes(tmp_path / "ct", positions(OBLIQUE)[::-1], OBLIQUE, RescaleSlope=2, RescaleIntercept=-1024)
    scan = read_scan(source)
    wanted = scan.array + np.random.default_rng(0).normal(0, 30, scan.array.shape).astype(np.float32)
    written = write_series(tmp_path / "new", wanted, source)
    assert_same_place(written, scan)
    again = read_scan(written).array
    assert np.abs(again - wanted).max() <= 1  # half a step of the source's slope
    seen = as_itk(written)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(seen).transpose(2, 1, 0), again[0])
    np.testing.assert_allclose(seen.GetOrigin(), scan.affine[:3, 3] * [-1, -1, 1], atol=1e-6)
    pixels = np.stack([d.pixel_array.T * d.RescaleSlope + d.RescaleIntercept for d in tags(written)], axis=-1)
    np.testing.assert_array_equal(pixels, again[0])


def test_tags_of_a_new_series(tmp_path):
    def add(k, dataset):
        dataset.add_new(0x60003000, "OW", bytes(20))
        dataset.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(8, "LO", "Planted^Private")
        dataset.IconImageSequence = [pydicom.Dataset()]
        dataset.LargestImagePixelValue = 7

    source = save_planes(tmp_path / "ct", positions(), change=add)
    before = sorted(tags(source), key=lambda d: d.InstanceNumber)
    after = tags(write_series(tmp_path / "new", read_scan(source).array, source, description="z_sem of " + "x" * 70))
    assert len(after) == len(before) == 5
    for old, new in zip(before, after, strict=True):
        for kept in (
            "StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID", "SOPClassUID", "Modality",
            "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "WindowCenter", "WindowWidth",
        ):  # fmt: skip
            assert new[kept].value == old[kept].value, kept
        assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
        assert new.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
        assert new.SeriesNumber == 1007
        assert len(new.SeriesDescription) == 64 < len(new.DerivationDescription)
        assert new.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
        assert "Planted^Private" not in str(new)
        assert not any(k in new for k in ("IconImageSequence", "LargestImagePixelValue", (0x6000, 0x3000)))
    assert len({d.SeriesInstanceUID for d in (*before, *after)}) == 2
    assert len({d.SOPInstanceUID for d in (*before, *after)}) == 10
    assert [d.InstanceNumber for d in after] == [1, 2, 3, 4, 5]


def test_the_same_result_is_the_same_series(tmp_path):
    source = save_planes(tmp_path / "ct", positions())
    array = read_scan(source).array
    first, second = (write_series(tmp_path / name, array, source) for name in ("a", "b"))
    for old, new in zip(sorted(first.iterdir()), sorted(second.iterdir()), strict=True):
        assert old.read_bytes() == new.read_bytes()
    other = write_series(tmp_path / "c", array + 1, source)
    named = write_series(tmp_path / "d", array, source, description="else")
    assert len({tags(p)[0].SeriesInstanceUID for p in (first, second, other, named)}) == 3


@pytest.mark.goal(id="R11")
@pytest.mark.parametrize(
    ("low", "high", "signed", "step"), [(0, 65535, 0, 1), (-32768, 32767, 1, 1), (-1e6, 2e5, 1, 30.6)]
)
def test_nothing_wraps(tmp_path, low, high, signed, step):
    source = save_planes(tmp_path / "ct", positions())
    wanted = np.linspace(low, high, 10 * 14 * 5, dtype=np.float32).reshape(1, 10, 14, 5)
    written = write_series(tmp_path / "new", wanted, source)
    assert np.abs(read_scan(written).array - wanted).max() <= step / 2
    assert {d.PixelRepresentation for d in tags(written)} == {signed}
    np.testing.assert_allclose(sitk.GetArrayFromImage(as_itk(written)).T, read_scan(written).array[0], rtol=1e-6)


@pytest.mark.parametrize("how", [{"PhotometricInterpretation": "MONOCHROME1"}, {"PresentationLUTShape": "INVERSE"}])
def test_an_inverted_image_becomes_monochrome2(tmp_path, how):
    source = tmp_path / "dx.dcm"
    make_plane(positions()[0], **how, Modality="DX").save_as(source)
    scan = read_scan(source)
    written = write_series(tmp_path / "new.dcm", scan.array, source)
    assert_same_place(written, scan)
    np.testing.assert_array_equal(read_scan(written).array, scan.array)
    assert "WindowCenter" not in tags(written)[0]


@pytest.mark.parametrize("how", ["_bigendian", "_jpeg_ls_lossless"])
def test_single_files_of_every_encoding(tmp_path, how):
    source = str(get_testdata_file(f"MR_small{how}.dcm", download=False))
    scan = read_scan(source)
    written = write_series(tmp_path / "new.dcm", scan.array, source)
    assert_same_place(written, scan)
    np.testing.assert_array_equal(read_scan(written).array, scan.array)
    old, new = tags(Path(source))[0], tags(written)[0]
    changed = {e.keyword for e in new if e.keyword not in old or e.value != old[e.keyword].value}
    assert changed <= {
        "ImageType", "SOPInstanceUID", "SourceImageSequence", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber",
        "SeriesDescription", "DerivationDescription", "PixelData", "BitsStored", "HighBit",
    }  # fmt: skip


def test_frames_become_slices(tmp_path):
    places = positions(OBLIQUE)[[3, 1, 4, 0, 2]]
    source = save_enhanced(tmp_path / "mr.dcm", places, OBLIQUE, slopes=[1, 2, 3, 4, 5])
    scan = read_scan(source)
    written = write_series(tmp_path / "new", scan.array, source)
    assert_same_place(written, scan)
    assert {d.SOPClassUID for d in tags(written)} == {pydicom.uid.MRImageStorage}
    assert not any("PerFrameFunctionalGroupsSequence" in d or "NumberOfFrames" in d for d in tags(written))
    np.testing.assert_allclose(sitk.GetArrayFromImage(as_itk(written)).T, read_scan(written).array[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["resampled", "straightened"])
def test_a_volume_that_was_resampled_is_written_as_it_was_read(tmp_path, kind):
    if kind == "resampled":
        heights = np.concatenate([[0], np.cumsum([2.0] * 4 + [3.5] * 4)])
        source = save_planes(tmp_path / "ct", positions()[0] + heights[:, None] * np.array([0, 0, 1.0]))
    else:
        source = save_planes(tmp_path / "ct", positions(tilt=-0.6), GantryDetectorTilt=16.7)
    scan = read_scan(source)
    folder = write_series(tmp_path / "new", scan.array, source)
    written = read_scan(folder, ScanNeeds(uneven="refuse", doubtful="refuse"))
    np.testing.assert_allclose(written.affine, scan.affine, atol=1e-4)
    np.testing.assert_allclose(written.array, scan.array, atol=0.51)
    assert not any("GantryDetectorTilt" in d for d in tags(folder))


def test_files_of_others_stay(tmp_path):
    source = save_planes(tmp_path / "ct", positions())
    array = read_scan(source).array
    written = write_series(tmp_path / "new", array, source)
    longer = save_planes(tmp_path / "longer", positions(n=7))
    write_series(written, read_scan(longer).array, longer)
    assert len(list(written.iterdir())) == 7
    write_series(written, array, source)
    assert len(list(written.iterdir())) == 5
    with pytest.raises(ConfigError, match="not written by this package"):
        write_series(source, array, source)
    assert len(list(source.iterdir())) == 5


def test_what_cannot_be_written(tmp_path):
    source = save_planes(tmp_path / "ct", positions())
    array = read_scan(source).array
    for wrong in (array[..., :4], array.repeat(2, 0), np.full_like(array, np.nan)):
        with pytest.raises(ConfigError, match="source's size"):
            write_series(tmp_path / "new", wrong, source)
    colours = str(get_testdata_file("SC_rgb_small_odd.dcm", download=False))
    with pytest.raises(ScanError, match="colour images"):
        write_series(tmp_path / "new.dcm", read_scan(colours).array, colours)
    closed = tmp_path / "closed"
    closed.mkdir()
    with as_nobody(closed), pytest.raises(MachineError):
        write_series(closed / "new", array, source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["closed", "ct"]


def test_nothing_is_left_of_a_series_that_fails(tmp_path, monkeypatch):
    source = save_planes(tmp_path / "ct", positions())
    array = read_scan(source).array
    written = write_series(tmp_path / "new", array, source)
    write, calls = pydicom.dcmwrite, []

    def full_disk(path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        write(path, *args, **kwargs)

    monkeypatch.setattr(pydicom, "dcmwrite", full_disk)
    with pytest.raises(MachineError):
        write_series(written, array + 1, source)
    np.testing.assert_array_equal(read_scan(written).array, array)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct", "new"]


@pytest.mark.parametrize(
    "name", ["hippocampus_hcrop_dicom/Study2_14_HCropVolume", "dicom_mr_brain_pgbm003/11-T1post-18670"]
)
def test_a_dicom_series_as_itk_reads_it_and_there_and_back(name, tmp_path):
    source = shared(name)
    scan, image = read_scan(source), as_itk(source)
    np.testing.assert_array_equal(scan.array[0].transpose(2, 1, 0), sitk.GetArrayFromImage(image))
    to_ras = np.diag([-1, -1, 1])
    np.testing.assert_allclose(scan.affine[:3, 3], to_ras @ image.GetOrigin(), atol=1e-3)
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    np.testing.assert_allclose(scan.affine[:3, :3], to_ras @ directions, atol=1e-3)
    written = write_series(tmp_path / "new", scan.array, source)
    np.testing.assert_array_equal(read_scan(written).array, scan.array)
    np.testing.assert_allclose(as_itk(written).GetOrigin(), image.GetOrigin(), atol=1e-6)
