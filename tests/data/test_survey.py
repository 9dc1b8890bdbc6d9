"""Sizes and spacings of a cohort from headers, in the patient's axes whatever the files' order."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure
from monai_diffae.data.scans import read_geometry
from monai_diffae.data.survey import survey_cohort
from monai_diffae.errors import CohortError


def volume(path, shape, spacing, orientation="RAS"):
    affine = np.diag([*spacing, 1.0])
    image = nib.Nifti1Image(np.zeros(shape, np.int16), affine)
    turn = nib.orientations.axcodes2ornt(orientation)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turn))
    nib.save(image, path)
    return Case(path.name.split(".")[0], {"image": path}, path.name)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "SAL"])
def test_geometry_is_along_right_anterior_superior(tmp_path, orientation):
    case = volume(tmp_path / "a.nii", (4, 5, 6), (1.0, 2.0, 3.0), orientation)
    assert read_geometry(case.images["image"]) == ((4, 5, 6), (1.0, 2.0, 3.0))


def test_geometry_of_images(tmp_path):
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "a.png")
    assert read_geometry(tmp_path / "a.png") == ((5, 7), (1.0, 1.0))
    volume(tmp_path / "flat.nii", (4, 1, 6), (1.0, 9.0, 3.0))
    assert read_geometry(tmp_path / "flat.nii") == ((6, 4), (3.0, 1.0))


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


def test_slices_of_volumes_are_images_for_a_2d_model(tmp_path):
    survey = survey_cohort([volume(tmp_path / "a.nii", (4, 5, 6), (1.0, 2.0, 3.0))], 2, "coronal")
    assert (survey.sizes.tolist(), survey.spacings_mm.tolist()) == ([[6, 4]], [[3.0, 1.0]])


def test_a_cohort_without_a_usable_scan_is_refused(tmp_path):
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(CohortError, match="none of 1 scans can be used, the first is 'a': a.png: a 2D image"):
        survey_cohort([Case("a", {"image": tmp_path / "a.png"}, "a")], 3)


def cut(case, num_bytes):
    path = case.images["image"]
    path.write_bytes(path.read_bytes()[:num_bytes])
    return case


def noise(path, shape=(10, 12, 8)):
    values = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return Case(path.name.split(".")[0], {"image": path}, path.name)


def test_plain_files_that_are_shorter_than_their_header_says_fail_without_being_read(tmp_path):
    cases = [noise(tmp_path / "whole.nii"), cut(noise(tmp_path / "cut.nii"), 1000)]
    for name in ("cut.nrrd", "cut.mha"):
        image = sitk.GetImageFromArray(np.zeros((8, 12, 10), np.int16))
        sitk.WriteImage(image, str(tmp_path / name))
        cases.append(cut(Case(name, {"image": tmp_path / name}, name), 1000))
    survey = survey_cohort(cases)
    assert survey.ids == ["whole"]
    assert [failure.case_id for failure in survey.failures] == ["cut", "cut.nrrd", "cut.mha"]
    assert all("early" in failure.reason for failure in survey.failures)


def test_a_survey_reads_headers_and_fingerprints_on_demand(tmp_path):
    whole, short = noise(tmp_path / "whole.nii.gz"), noise(tmp_path / "short.nii.gz")
    cut(short, len(short.images["image"].read_bytes()) - 100)
    flat = volume(tmp_path / "flat.nii.gz", (10, 12, 8), (1.0, 1.0, 1.0))  # one value everywhere
    cases = [whole, short, flat]
    assert survey_cohort(cases).failures == []
    survey = survey_cohort(cases, fingerprints=True)
    assert survey.ids == ["whole", "short", "flat"]
    assert list(survey.fingerprints) == ["whole"]
    checked = survey.after_check([Failure("short", "short.nii.gz", "it ends early")])
    assert (checked.ids, len(checked.sizes)) == (["whole", "flat"], 2)
    with pytest.raises(CohortError, match="none of 3 scans can be used, the first is 'whole'"):
        survey.after_check([Failure(case.id, case.file, "bad") for case in cases])
