"""Surveys from headers, and what is found in the scans of a cohort."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scan_files import save_nifti, values

from monai_diffae.apps.training.verify import survey_lines
from monai_diffae.data.cases import Case
from monai_diffae.data.inspection.survey import Reading, read_case, read_cases, survey_cohort, verify_cases
from monai_diffae.data.scans import read_geometry


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


def saved_readings(cases, folder, monkeypatch):
    """The readings, all of which must be saved."""
    with monkeypatch.context() as patch:
        patch.setattr("monai_diffae.data.inspection.survey.read_case", pytest.fail)
        return read_cases(cases, folder=folder)


@pytest.mark.goal(id="R12")
def test_files_of_one_name_size_and_time_are_not_confused(tmp_path, monkeypatch):
    """The reading of one patient's scan came back for that of another, from which no defect was then reported."""
    cases = []
    for patient, array in {"p1": np.full((5, 6, 7), np.nan, np.float32), "p2": values(5, 6, 7)}.items():
        (tmp_path / patient).mkdir()
        path = save_nifti(tmp_path / patient / "t1.nii", array.astype(np.float32))
        os.utime(path, ns=(0, 10**18))  # as in an archive
        cases.append(Case(f"{patient}/t1", {"image": path}, patient))
    read_cases(cases, folder=tmp_path / "readings")
    first, second = saved_readings(cases, tmp_path / "readings", monkeypatch)
    assert (first.print, second.print is None) == (None, False)
    for case in cases:
        case.first_file.rename(case.first_file.with_suffix(".old"))
    (tmp_path / "p1" / "t1.old").rename(cases[1].first_file)
    (tmp_path / "p2" / "t1.old").rename(cases[0].first_file)
    first, second = read_cases(cases, folder=tmp_path / "readings")
    assert (first.print is None, second.print) == (False, None)


_VOLUME = Reading(size=(4, 5, 6), spacing_mm=(1, 1, 1), channels=1)
_IMAGE = Reading(size=(4, 5), spacing_mm=(1, 1), channels=1)
_COLOUR = Reading(size=(4, 5), spacing_mm=(1, 1), channels=3)


@pytest.mark.parametrize(
    ("readings", "status", "kind"),
    [
        ([_VOLUME] * 3, "ok", ""),
        ([_VOLUME, _VOLUME, _IMAGE], "failed", "a 2D image among volumes"),
        ([_IMAGE, _IMAGE, _VOLUME], "doubtful", "a volume among 2D images"),
        ([_IMAGE, _IMAGE, _COLOUR], "doubtful", "a colour image among grey ones"),
        ([_COLOUR, _COLOUR, _IMAGE], "doubtful", "it has N channels, but most have N"),
        ([Reading(error="a.nii: it is bad; x"), Reading(error="b.nii: it is bad; x"), _VOLUME], "ok", ""),
    ],
)
def test_a_case_is_compared_with_most_others(readings, status, kind):
    cases = [Case(str(k), {"image": Path(str(k))}, str(k)) for k in range(len(readings))]
    last = verify_cases(cases, readings).cases[-1]
    assert (last.status, "".join(finding.kind for finding in last.findings)) == (status, kind)
