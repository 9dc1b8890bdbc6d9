"""Class folders, and folders that are something else."""

import pytest

from monai_diffae.data.listing.class_folders import find_class_folders


def scans(*folders, each=3):
    """Three scans in each folder."""
    return [tuple(folder.split("/")) if folder else () for folder in folders for _ in range(each)]


@pytest.mark.parametrize(
    ("folders", "level"),
    [
        (["NORMAL", "PNEUMONIA"], 0),
        (["benign", "malignant", "normal"], 0),
        (["data/yes", "data/no"], 1),
        (["train/NORMAL", "train/PNEUMONIA", "test/NORMAL", "validation/PNEUMONIA"], 1),
        (["NORMAL/train", "NORMAL/test", "AD/train"], 0),
        (["0", "1", "2", "3", "4"], 0),
        (["grade_1", "grade_2", "grade_3"], 0),
        (["patient_01/benign", "patient_02/malignant", "patient_03/benign"], 1),
        (["COVID/images", "Normal/images"], 0),
    ],
)
def test_class_folders_are_found(folders, level):
    each = scans(*folders)
    assert find_class_folders(each).classes == [folder[level] for folder in each]


@pytest.mark.parametrize(
    "folders",
    [
        [""],
        ["all"],
        ["a", ""],
        ["sub-01/anat", "sub-02/anat", "sub-02/func"],
        ["sub-01/ses-1", "sub-02/ses-2"],
        ["patient_01", "patient_02", "patient_10"],
        ["101", "102", "103", "117"],
        ["T1", "T2", "FLAIR"],
        ["imagesTr", "imagesTs"],
        ["train", "test"],
        ["BraTS_001/t1", "BraTS_002/t1"],
        ["P1/DICOM/S1", "P2/DICOM/S1"],
    ],
)
def test_other_folders_are_no_classes(folders):
    assert find_class_folders(scans(*folders)).classes == []


def test_one_scan_per_folder_is_no_class():
    assert find_class_folders(scans("Ann", "Bob", "Eve", each=1)).classes == []


def test_splits_get_their_standard_names():
    found = find_class_folders(scans("Training/a", "valid/b", "TESTING/a", each=2))
    assert found.splits == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    assert found.classes == ["a", "a", "b", "b", "a", "a"]


def test_any_level_can_be_asked_for():
    found = find_class_folders([("x", "patient_01"), ("x", "patient_02"), ("x",)], strict=False)
    assert found.classes == ["patient_01", "patient_02", None]
