"""Surveys from headers, and what is found in the scans of a cohort."""

import io
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scan_files import save_nifti, values
from tiny_bundles import contents

from monai_diffae.apps.training.verify import survey_lines
from monai_diffae.data import Case, Scan
from monai_diffae.data.inspection import twins
from monai_diffae.data.inspection.survey import Reading, read_case, read_cases, survey_cohort, verify_cases
from monai_diffae.data.inspection.twins import TwinGroup, report_twins, scan_print
from monai_diffae.data.samples.virtual_cohort import draw_patient, render_patient
from monai_diffae.data.scans import read_geometry
from monai_diffae.errors import CohortError


def volume(path, shape, spacing, orientation="RAS"):
    affine = np.diag([*spacing, 1.0])
    image = nib.Nifti1Image(np.zeros(shape, np.int16), affine)
    turn = nib.orientations.axcodes2ornt(orientation)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turn))
    nib.save(image, path)
    return Case(path.name.split(".")[0], {"image": path}, path.name)


def test_geometry_is_along_right_anterior_superior(tmp_path):
    for orientation in ("RAS", "LPS", "PIR", "SAL"):
        case = volume(tmp_path / "a.nii", (4, 5, 6), (1.0, 2.0, 3.0), orientation)
        assert read_geometry(case.images["image"]) == ((4, 5, 6), (1.0, 2.0, 3.0))
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "a.png")
    assert read_geometry(tmp_path / "a.png") == ((5, 7), (1.0, 1.0))
    volume(tmp_path / "flat.nii", (4, 1, 6), (1.0, 9.0, 3.0))
    assert read_geometry(tmp_path / "flat.nii") == ((6, 4), (3.0, 1.0))
    survey = survey_cohort([case], 2)  # slices of volumes are images for a 2D model
    assert (survey.sizes.tolist(), survey.spacings_mm.tolist()) == ([[5, 4]], [[2.0, 1.0]])
    picture = survey_cohort([Case("a", {"image": tmp_path / "a.png"}, "a")])  # has no millimetres
    assert ["mm" in "".join(survey_lines(one)) for one in (survey, picture)] == [True, False]


def test_percentiles_outliers_and_failures(tmp_path):
    cases = [volume(tmp_path / f"{i}.nii", (10 + i, 12, 8), (1.0, 1.0, 2.0)) for i in range(5)]
    cases.append(volume(tmp_path / "far.nii", (10, 12, 8), (1.0, 1.0, 5.0)))
    (tmp_path / "bad.nii").write_bytes(b"bad")
    cases.append(Case("bad", {"image": tmp_path / "bad.nii"}, "bad"))
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "flat.png")
    cases.append(Case("flat", {"image": tmp_path / "flat.png"}, "flat"))
    survey = survey_cohort(cases)
    assert survey.spatial_dims == 3
    assert survey.outliers == ["far"]
    assert {failure.case_id for failure in survey.failures} == {"bad", "flat"}
    summary = survey.summary()
    assert (summary["num_scans"], summary["num_failed"]) == (6, 2)
    assert summary["size"]["p50"] == [11.5, 12, 8]
    assert summary["field_mm"]["p50"] == [11.5, 12, 16]
    assert summary["spacing_mm"]["p95"][2] > 2


def test_plain_files_that_are_shorter_than_their_header_says_fail_without_being_read(tmp_path):
    names = ("cut.nii", "cut.nrrd", "cut.mha", "whole.nii")
    for name in names:
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 12, 10), np.int16)), str(tmp_path / name))
    for name in names[:3]:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1000])
    survey = survey_cohort([Case(name, {"image": tmp_path / name}, name) for name in names])
    assert survey.ids == ["whole.nii"]
    assert [failure.case_id for failure in survey.failures] == [*names[:3]]
    assert all("early" in failure.reason for failure in survey.failures)


def test_all_files_of_a_case_are_read(tmp_path):
    good, bad = save_nifti(tmp_path / "a.nii"), tmp_path / "b.nii"
    bad.write_bytes(b"junk")
    assert read_case(Case("a", {"image": (good, bad)}, "a")).error.startswith("b.nii: ")
    assert read_case(Case("a", {"t1": bad, "image": good}, "a"), headers=True).error.startswith("b.nii: ")


@pytest.mark.goal(id="R12")
def test_files_of_one_name_size_and_time_are_not_confused(tmp_path):
    """The reading of one patient's scan came back for that of another, from which no defect was then reported."""
    cases = []
    for patient, array in {"p1": np.full((5, 6, 7), np.nan, np.float32), "p2": values(5, 6, 7)}.items():
        (tmp_path / patient).mkdir()
        path = save_nifti(tmp_path / patient / "t1.nii", array.astype(np.float32))
        os.utime(path, ns=(0, 10**18))  # as in an archive
        cases.append(Case(f"{patient}/t1", {"image": path}, patient))
    read_cases(cases, folder=tmp_path / "readings")
    saved = contents(tmp_path / "readings")
    first, second = read_cases(cases, folder=tmp_path / "readings")
    assert contents(tmp_path / "readings") == saved  # nothing was read again
    assert (first.print, second.print is None) == (None, False)
    for case in cases:
        case.first_file.rename(case.first_file.with_suffix(".old"))
    (tmp_path / "p1" / "t1.old").rename(cases[1].first_file)
    (tmp_path / "p2" / "t1.old").rename(cases[0].first_file)
    first, second = read_cases(cases, folder=tmp_path / "readings")
    assert (first.print is None, second.print) == (False, None)


_VOLUME = {"size": (4, 5, 6), "spacing_mm": (1, 1, 1), "channels": 1}
_IMAGE = {"size": (4, 5), "spacing_mm": (1, 1), "channels": 1}
_COLOUR = {**_IMAGE, "channels": 3}


def readings_of(*values):
    return [Reading(Case(str(k), {"image": Path(str(k))}, str(k)), **each) for k, each in enumerate(values)]


@pytest.mark.parametrize(
    ("readings", "status", "kind"),
    [
        ([_VOLUME] * 3, "ok", ""),
        ([_VOLUME, _VOLUME, _IMAGE], "failed", "a 2D image among volumes"),
        ([_IMAGE, _IMAGE, _VOLUME], "doubtful", "a volume among 2D images"),
        ([_IMAGE, _IMAGE, _COLOUR], "doubtful", "a colour image among grey ones"),
        ([_COLOUR, _COLOUR, _IMAGE], "doubtful", "another number of channels than most"),
        ([{"error": "a.nii: it is bad; x"}, {"error": "b.nii: it is bad; x"}, _VOLUME], "ok", ""),
    ],
)
def test_a_case_is_compared_with_most_others(readings, status, kind):
    last = verify_cases(readings_of(*readings)).cases[-1]
    assert (last.status, "".join(finding.kind for finding in last.findings)) == (status, kind)


def test_the_geometry_of_pictures_is_not_that_of_slices_of_volumes():
    pictures, volumes = (
        [{"size": (64, 64), "spacing_mm": (1.0, 1.0)}] * 3,
        [{"size": (9,) * 3, "spacing_mm": (0.4,) * 3}] * 2,
    )
    verification = verify_cases(readings_of(*pictures, *volumes))
    assert (verification.survey.sizes.tolist(), verification.survey.has_mm) == ([[64, 64]] * 3, False)
    assert [len(case.findings) for case in verification.cases] == [0, 0, 0, 1, 1]


# -- twins -------------------------------------------------------------------------------------------------------------


def test_the_same_voxels_have_the_same_digest_whatever_their_order_in_the_file():
    array = values(6, 7, 8)
    scan = Scan(array[None], np.eye(4))
    turned = Scan(array[None, ::-1].swapaxes(2, 3).copy(), np.diag([-1.0, 1, 1, 1])[:, [0, 2, 1, 3]])
    assert scan_print(scan).digest == scan_print(turned).digest
    assert scan_print(scan).thumbnail.shape == (3, twins.SIZE, twins.SIZE)


def saved_again(picture):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=40)
    return Image.open(stream)


CHANGES = {
    "saved again": saved_again,
    "smaller": lambda picture: picture.resize((70, 80), Image.Resampling.BILINEAR),
    "larger": lambda picture: picture.resize((300, 280), Image.Resampling.BICUBIC),
    "brighter": lambda picture: picture.point(lambda value: value * 1.2 + 10),
    "gamma": lambda picture: picture.point(lambda value: 255 * (value / 255) ** 0.8),
    "mixed": lambda picture: saved_again(picture.crop((1, 1, 95, 95)).point(lambda value: value * 0.8 + 40)),
}


def twins_of(arrays, patients=None):
    prints = {position: scan_print(Scan(array, np.eye(4))) for position, array in enumerate(arrays)}
    return twins.find_twins(prints, patients or [str(position) for position in prints])


@pytest.mark.parametrize(("spatial_dims", "size", "count"), [(2, 96, 30), (3, 24, 8)])
def test_changed_copies_of_a_head_are_twins_and_deformed_ones_are_not(spatial_dims, size, count):
    patients = [draw_patient(0, number) for number in range(count)]
    arrays = [render_patient(p, size=size, spatial_dims=spatial_dims)[0].squeeze() for p in patients]
    changed = [arrays[0] + np.random.default_rng(0).normal(0, 2.5, arrays[0].shape)]
    if spatial_dims == 2:
        changed += [change(Image.fromarray(arrays[0])) for change in CHANGES.values()]
    groups = twins_of([np.asarray(image, np.float32)[None] for image in (*arrays, *changed)])
    assert groups == [TwinGroup((0, *range(count, count + len(changed))), is_identical=False)]


def test_copies_are_one_group_and_within_a_patient_only_if_they_are_identical():
    scans = list(np.random.default_rng(0).random((5, 1, 40, 40), np.float32))
    groups = [TwinGroup((1, 6), is_identical=True), TwinGroup((3, 5, 7), is_identical=True)]
    assert twins_of([*scans, scans[3], scans[1], scans[3]], ["one patient"] * 8) == groups
    pair, empty = [scans[0], scans[0] + 1], np.zeros((1, 20, 20), np.float32)
    assert twins_of(pair) == [TwinGroup((0, 1), is_identical=False)]
    assert twins_of(pair, ["a", "a"]) == []  # of one patient
    assert twins_of([empty, empty]) == []
    assert twins_of(pair[:1]) == twins_of([]) == []


def test_twins_that_share_scans_become_one_patient():
    cases = [Case(str(i), {}, patient) for i, patient in enumerate("pqrstp")]
    groups = [TwinGroup((1, 2), is_identical=True), TwinGroup((2, 5), is_identical=False)]
    patients = [case.patient for case in twins.group_twins(cases, groups)]
    assert len({patients[i] for i in (0, 1, 2, 5)}) == 1
    assert patients[3:5] == ["s", "t"]


def test_twins_in_two_splits_cannot_be_one_patient():
    cases = [Case("a", {}, "p", "train"), Case("b", {}, "q", "test")]
    with pytest.raises(CohortError, match=r"a \(split train\) and b \(split test\), so they cannot become one patient"):
        twins.group_twins(cases, [TwinGroup((0, 1), is_identical=True)])


def test_a_label_named_twins_is_not_replaced_silently():
    with pytest.raises(CohortError, match="column twins has a label, 'monozygotic'"):
        twins.mark_twins([Case("a", {}, "a", labels={"twins": "monozygotic"})], [])


def case(name, patient=None, split=None, **labels):
    return Case(name, {}, patient or name, split, labels)


def test_only_twins_of_other_patients_splits_or_labels_are_problems():
    group = [TwinGroup((0, 1), is_identical=True)]
    report = report_twins([case("a", "p", "train"), case("b", "p", "train")], group)
    assert [*report.problems()] == []
    assert report.groups == [["a", "b"]]
    assert [line.partition(":")[0] for line in report.lines()] == ["twins"]
    assert [*report_twins([case("a", split="train", ill=0), case("b", ill=None)], group).problems()] == []
    assert [*report_twins([case("a"), case("b")], []).lines()] == []
    cases = [case(str(i), age=i, ill=i % 2) for i in range(30)]  # measurements with many values may differ
    assert [pair.what for pair in report_twins(cases, [TwinGroup((3, 4), is_identical=False)]).contradictory] == ["ill"]
