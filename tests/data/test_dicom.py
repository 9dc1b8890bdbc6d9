"""DICOM: every voxel lies where the standard says, with the value that it says, or the file is refused."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import AXIAL, OBLIQUE, make_plane, misplaced, positions, save_enhanced, save_planes, save_series
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, RLELossless
from scan_files import refusal

from monai_diffae.data.formats.dicom import read_patient
from monai_diffae.data.scans import ScanNeeds, read_geometry, read_scan, read_shape
from monai_diffae.errors import ScanError

ORIENTATIONS = {"axial": AXIAL, "sagittal": (0, 1, 0, 0, 0, -1), "feet first": (-1, 0, 0, 0, 1, 0), "oblique": OBLIQUE}


def test_a_series_is_read_in_spatial_order_and_told_from_others(tmp_path):
    for suffix in (".dcm", "", ".IMA"):
        folder = save_series(tmp_path / f"ct{suffix}", suffix=suffix)
        scan = read_scan(folder, ScanNeeds(spatial_dims=3, channels=1))
        assert scan.array.shape == (1, 6, 4, 5) == (1, *read_shape(folder))
        assert scan.modality == "CT"
        np.testing.assert_allclose(scan.spacing_mm, (0.5, 0.75, 2))
        assert [int(v) for v in scan.array[0, 0, 0]] == [0, 100, 200, 300, 400]
    save_series(folder, 3, "1.2.4", "b")
    assert "2 DICOM series" in refusal(folder)
    assert read_scan(f"{folder}#series=1.2.4").array.shape == (1, 6, 4, 3)
    assert "UID" in refusal(f"{folder}#series=9")
    assert read_patient(Path("x" * 300)) is None  # too long for a file


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_voxel_lies_where_the_standard_says(tmp_path, name):
    orientation = ORIENTATIONS[name]
    for direction in (1, -1):
        series = save_planes(tmp_path / f"series{direction}", positions(orientation)[::direction], orientation)
        scan = read_scan(series)
        assert misplaced(scan.array[0], scan.affine) <= 1  # ramp is rounded, and so are the tags
        np.testing.assert_allclose(scan.spacing_mm, (0.5, 0.75, 2), rtol=1e-6)
        itk = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series)))
        corner = itk.TransformContinuousIndexToPhysicalPoint((9, 13, 4))
        np.testing.assert_allclose((scan.affine @ [9, 13, 4, 1])[:3] * [-1, -1, 1], corner, atol=1e-4)


@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        ({"PixelSpacing": [0.3, 0.2], "ImagerPixelSpacing": [0.4, 0.5]}, (0.3, 0.2)),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.4, 0.5]}, (0.4, 0.5)),
        ({"PixelSpacing": None, "NominalScannedPixelSpacing": [0.6, 0.7]}, (0.6, 0.7)),
        ({"PixelSpacing": [0, "1e-1"]}, (1, 1)),
    ],
)
def test_a_radiograph_has_its_spacing_and_is_as_it_is_shown(tmp_path, spacings, expected):
    """White is high, whichever of the two tags says that it is low; MONOCHROME1 has both."""
    arrays = []
    for colours, shape in (("MONOCHROME2", None), ("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "INVERSE")):
        tags = {"PhotometricInterpretation": colours, "PresentationLUTShape": shape, "PixelRepresentation": 0}
        plane = make_plane((0, 0, 0), Modality="DX", RescaleSlope=2, RescaleIntercept=-7, **tags, **spacings)
        plane.SOPClassUID = plane.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
        plane.ImagePositionPatient = plane.ImageOrientationPatient = None
        plane.save_as(tmp_path / "a.dcm")
        scan = read_scan(tmp_path / "a.dcm")
        np.testing.assert_allclose(scan.spacing_mm, expected)
        np.testing.assert_allclose(read_geometry(tmp_path / "a.dcm")[1], expected)
        arrays.append(scan.array)
    np.testing.assert_array_equal(arrays[1], 2 * 65535 - 14 - arrays[0])
    np.testing.assert_array_equal(arrays[1], arrays[2])


def test_each_slice_has_its_own_slope(tmp_path):
    """As in PET; ITK's reader of series casts them to the type of the first, an integer with a slope of 2."""
    slopes = [2, 0.37, 0.5, 0.25, 1.5]
    series = save_planes(
        tmp_path / "pet", positions(), change=lambda k, d: setattr(d, "RescaleSlope", slopes[k]), RescaleIntercept=3
    )
    whole = read_scan(save_planes(tmp_path / "whole", positions())).array
    np.testing.assert_allclose(read_scan(series).array, whole * np.array(slopes) + 3, rtol=1e-6)
    enhanced = save_enhanced(tmp_path / "enhanced.dcm", positions(), slopes=slopes)
    np.testing.assert_allclose(read_scan(enhanced).array, whole * np.array(slopes) + 5, rtol=1e-6)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 1, 4, 0, 2]])
def test_frames_of_an_enhanced_file(tmp_path, order):
    path = save_enhanced(tmp_path / "mr.dcm", positions(OBLIQUE)[order], OBLIQUE)
    scan = read_scan(path, ScanNeeds(spatial_dims=3))
    assert scan.modality == "MR"
    assert misplaced(scan.array[0], scan.affine, intercept=5) <= 1
    assert sorted(read_shape(path)) == [5, 10, 14]


def test_frames_that_are_no_volume(tmp_path):
    gap = save_enhanced(tmp_path / "gap.dcm", positions()[[0, 1, 3, 4]])
    assert "a gap of 4 mm" in refusal(gap)
    assert "4D" in refusal(save_enhanced(tmp_path / "times.dcm", positions()[[0, 0, 1, 1]]))
    fewer = pydicom.dcmread(tmp_path / "gap.dcm")
    fewer.PerFrameFunctionalGroupsSequence.pop()
    fewer.save_as(tmp_path / "fewer.dcm")
    assert "4 frames, but positions for 3" in refusal(tmp_path / "fewer.dcm")
    film = get_testdata_file("SC_rgb_rle_2frame.dcm", download=False)
    assert "a film" in refusal(str(film))


def test_encodings(tmp_path):
    expected = read_scan(str(get_testdata_file("MR_small.dcm", download=False))).array
    for how in ("RLE", "implicit", "bigendian", "padded", "expb", "jp2klossless", "jpeg_ls_lossless"):
        encoded = str(get_testdata_file(f"MR_small_{how}.dcm", download=False))
        np.testing.assert_array_equal(read_scan(encoded).array, expected)
    big = {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31, "little_endian": False}
    dataset = make_plane(positions()[0], **big)
    dataset.PixelData = np.arange(140, dtype=">i4").tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.dcm").array.ravel(), np.arange(140))  # GDCM would not
    rgb = np.random.default_rng(0).integers(0, 65536, (14, 10, 3), np.uint16)
    colours = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    dataset = make_plane(positions()[0], stored=rgb[..., 0], PixelRepresentation=0, **colours)
    dataset.PixelData = rgb.tobytes()
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(read_scan(tmp_path / "b.dcm").array, rgb.transpose(2, 0, 1))  # nor this


def test_bits_above_the_stored_ones_are_no_values(tmp_path):
    def set_overlay(k, dataset):
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.int16) | 0x4000).tobytes()

    bits = {"PixelRepresentation": 0, "BitsStored": 12, "HighBit": 11}
    scan = read_scan(save_planes(tmp_path / "ct", positions(), change=set_overlay, **bits))
    assert misplaced(scan.array[0], scan.affine) == 0
    save_planes(tmp_path / "twice", positions(), **bits | {"HighBit": 15})
    assert "12 bits are stored up to bit 15" in refusal(tmp_path / "twice")


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


def test_a_declared_padding_that_tissue_has_too_is_kept(tmp_path):
    plain = read_scan(save_planes(tmp_path / "plain", positions())).array
    middle = int(np.sort(plain.ravel())[plain.size // 2])
    made = save_planes(tmp_path / "ct", positions(), change=lambda k, d: d.add_new("PixelPaddingValue", "SS", middle))
    np.testing.assert_array_equal(read_scan(made).array, plain)


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
        assert "a table converts its stored values (ModalityLUTSequence), which is not supported; " in line
        with pytest.raises(ScanError, match="ModalityLUTSequence"):
            read_shape(path)


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


@pytest.mark.goal(id="R5")
def test_defective_series(tmp_path):
    whole = save_series(tmp_path / "whole")
    cut = shutil.copytree(whole, tmp_path / "cut")
    (cut / "002.dcm").write_bytes((cut / "002.dcm").read_bytes()[:-20])
    assert "002.dcm" in refusal(cut)
    junk = shutil.copytree(whole, tmp_path / "junk")
    (junk / "006.dcm").write_bytes(b"not DICOM")
    assert "not readable DICOM" in refusal(junk)
    (tmp_path / "none").mkdir()
    assert "no readable DICOM" in refusal(tmp_path / "none")


def set_third(tag, value, k, dataset):
    if k == 2:
        setattr(dataset, tag, value)


def test_a_slice_that_does_not_say_where_it_lies_is_refused(tmp_path):
    for tag, value in (("ImagePositionPatient", None), ("ImageOrientationPatient", ""), ("PixelSpacing", [0.5])):
        one = save_planes(tmp_path / f"one{tag}", positions(), change=partial(set_third, tag, value))
        every = save_planes(tmp_path / f"every{tag}", positions(), **{tag: value})
        for series in (one, every):
            assert f"no {tag}" in refusal(series)
            with pytest.raises(ScanError, match=tag):
                read_shape(series)


def test_slices_that_do_not_belong_together(tmp_path):
    def of_third(tag, value):
        return save_planes(tmp_path / tag, positions(), change=partial(set_third, tag, value))

    turned = of_third("ImageOrientationPatient", [0, 1, 0, -1, 0, 0])  # within the plane: the normal is the same
    assert "different orientations" in refusal(turned)
    assert "different PixelSpacings" in refusal(of_third("PixelSpacing", [1, 1]))
    shifted = positions()
    shifted[2, 0] += 5
    assert "shifted against each other (by 5 mm)" in refusal(save_planes(tmp_path / "shifted", shifted))
    skewed = save_planes(tmp_path / "skewed", positions(), (1, 0, 0, 0.5, 0.866, 0))
    assert "perpendicular" in refusal(skewed)


def test_uneven_missing_and_doubled_slices(tmp_path):
    drifting = positions(n=20)
    drifting[10:, 2] += 0.19 * np.arange(10)  # each step within 10 %, 1 mm wrong in the middle
    series = save_planes(tmp_path / "drifting", drifting)
    assert "unevenly spaced (2 to 2.19 mm)" in refusal(series, uneven="refuse")
    scan = read_scan(series)
    assert scan.array.shape == (1, 10, 14, 21)
    assert misplaced(scan.array[0], scan.affine) <= 1.5  # ramp is linear, so that interpolation brings it back
    uneven = positions()
    uneven[1:, 2] += 0.6
    assert "unevenly spaced" in refusal(save_planes(tmp_path / "uneven", uneven), uneven="refuse")
    assert "a gap of 4 mm" in refusal(save_planes(tmp_path / "gap", positions()[[0, 1, 3, 4]]))
    times = np.concatenate([positions(), positions()])
    assert "duplicates, or 4D" in refusal(save_planes(tmp_path / "times", times))
    rounded = np.round(positions(OBLIQUE, step=0.625), 2)
    assert read_scan(save_planes(tmp_path / "rounded", rounded, OBLIQUE)).array.shape == (1, 10, 14, 5)


def _two_zones(fine, thick, tilt=0.0, n=8):
    """Planes of a head CT: n fine gaps below, n thick ones above; ``tilt`` mm along the columns for each mm upwards."""
    heights = np.concatenate([[0], np.cumsum([fine] * n + [thick] * n)])
    return np.array([-31.5, 12.25, 40.0]) + heights[:, None] * np.array([0, tilt, 1.0])


@pytest.mark.parametrize(("fine", "thick", "tilt"), [(4, 7, 0.0), (2.5, 5, 0.3)])
def test_planned_uneven_gaps_are_resampled_by_position(tmp_path, caplog, fine, thick, tilt):
    """Defect 27 of the reliability goals: a head CT with thin slices below is no series with missing slices."""
    series = save_planes(tmp_path / f"{fine}{thick}{tilt}", _two_zones(fine, thick, tilt))
    scan = read_scan(series)
    assert f"unevenly spaced ({fine:g} to {thick:g} mm); they are resampled to" in caplog.text
    assert ("gantry tilt of 16.7 degrees" in caplog.text) == bool(tilt)
    assert scan.spacing_mm[2] == pytest.approx(fine, rel=0.05)
    assert sorted(scan.array.shape[1:]) == sorted(read_shape(series))
    across = np.arange(scan.array.shape[2])[:, None] * 0.75 - tilt * 8 * (fine + thick) * np.linspace(
        0, 1, scan.array.shape[3]
    )
    covered = np.broadcast_to((across > -1e-6) & (across < 13 * 0.75 + 1e-6), scan.array.shape[1:])
    # tilted planes end at other voxels than their neighbours, so that interpolation mixes in the background there
    inside = covered if not tilt else np.broadcast_to((across > 3) & (across < 7), scan.array.shape[1:])
    assert inside.any()
    assert misplaced(scan.array[0], scan.affine, where=inside) <= 2
    assert "unevenly spaced" in refusal(series, uneven="refuse")


def test_missing_slices_are_no_planned_gaps(tmp_path):
    zones = _two_zones(2, 4)
    lost = [k for k in range(30) if k not in (11, 13, 15, 17)]  # gaps of 4 mm in a row, as if they were planned
    known = save_planes(
        tmp_path / "numbers", positions(n=30)[lost], change=lambda k, d: setattr(d, "InstanceNumber", lost[k] + 1)
    )
    assert "a slice is missing (a gap of 4 mm" in refusal(known)
    single = np.delete(zones, 4, axis=0)
    assert "a slice is missing (a gap of 4 mm" in refusal(save_planes(tmp_path / "single", single))
    numberless = save_planes(tmp_path / "numberless", zones, InstanceNumber=None)
    assert read_scan(numberless).spacing_mm[2] == pytest.approx(2)


@pytest.mark.parametrize(
    ("lost", "tags", "says"),
    [
        ([4], {"ImagesInAcquisition": 5}, "it has 4 slices, but its header declares 5"),
        ([0], {}, "it has 4 slices, but their numbers reach 5"),
        ([], {"InstanceNumber": None, "ImagesInAcquisition": ""}, None),
    ],
)
def test_a_slice_that_is_missing_at_an_end(tmp_path, caplog, lost, tags, says):
    series = save_planes(tmp_path / f"{lost}{len(tags)}{says}", positions(), **tags)
    names = np.random.default_rng(3).permutation(5)
    for k in lost:
        (series / f"{names[k]:03d}.dcm").unlink()
    scan = read_scan(series)
    assert misplaced(scan.array[0], scan.affine) <= 1
    assert [record.message.partition(": ")[2].partition(";")[0] for record in caplog.records] == [says] * bool(says)
    if says:
        assert says in refusal(series, doubtful="refuse")


@pytest.mark.parametrize(("name", "tilt"), [("axial", 0.6), ("oblique", -0.6)])
def test_a_tilted_gantry_is_straightened(tmp_path, caplog, tilt, name):
    orientation = ORIENTATIONS[name]
    places = positions(orientation, n=6, tilt=tilt)
    series = save_planes(tmp_path / "ct", places, orientation)
    scan = read_scan(series)
    assert "gantry tilt of 16.7 degrees" in caplog.text
    assert sorted(scan.array.shape[1:]) == sorted(read_shape(series)) == [6, 10, 18]
    np.testing.assert_allclose(scan.spacing_mm, (0.5, 0.75, 2), rtol=1e-6)
    axes = scan.affine[:3, :3] / scan.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    # ramp is linear, so that interpolation between voxels of a plane brings it back
    row = np.arange(18) - (4 if tilt < 0 else 0) - 0.8 * np.sign(tilt) * np.arange(6)[:, None]  # of plane k
    covered = np.broadcast_to(((row > -1e-6) & (row < 13 + 1e-6)).T, scan.array.shape[1:])
    assert misplaced(scan.array[0], scan.affine, where=covered) <= 1.5
    beyond = np.broadcast_to(((row < -1) | (row > 14)).T, scan.array.shape[1:])
    assert set(scan.array[0][beyond]) == {scan.array.min()}
