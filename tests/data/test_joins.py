"""Which row belongs to which scan, which folders are classes, and which files are label maps."""

import pytest

from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.label_maps import find_label_maps
from monai_diffae.data.listing.class_folders import find_class_folders
from monai_diffae.data.listing.joins import join_table
from monai_diffae.errors import CohortError


def rows_of(folder, content, id_column=None):
    table = folder.parent / "labels.csv"
    table.write_text(content, encoding="utf-8")
    cases = read_cohort(folder)
    return dict(zip([case.id for case in cases], join_table(cases, folder, table, id_column).rows, strict=True))


@pytest.mark.parametrize(
    ("files", "content", "rows"),
    [
        (["x/benign (1).png"], "file,age\nother,1\n{id},2\n", [1]),
        (["sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"], "participant_id,age\n01,41\n", [0, None]),
        (["sub-01/sub-01_T1w.nii.gz", "sub-01/sub-01_T2w.nii.gz"], "participant_id,age\nsub-01,41\n", [0, 0]),
        (
            ["sub-1/ses-1/sub-1_ses-1_T1w.nii", "sub-1/ses-2/sub-1_ses-2_T1w.nii"],
            "participant_id,session_id,age\nsub-1,ses-2,42\nsub-1,1,41\n",
            [1, 0],
        ),
        (["P1.png", "P2.png"], "id,session,age\nP2,1,40\nP1,1,50\n", [1, 0]),  # no scan has a session
        (["M_1/a.nii", "M_1/b.nii", "M_2/a.nii"], "id,CDR\nM_2,0\nM_1,1\n", [1, 1, 0]),
        (["a_1.nii", "a_2.nii"], "id,age\na,1\na_2,2\n", [0, 1]),  # a whole name wins over its beginning
        (["x/a.png", "x/Mu\u0308ller.png"], "file,age\nx\\a.png,1\n.\\x\\M\u00fcller.png,2\n", [1, 0]),
        (["1/3.png", "1/2.png", "2/4.png"], "id,age\n1/2,1\n1/3,2\n2/4,3\n", [0, 1, 2]),
    ],
)
def test_rows_find_their_scans(scans, files, content, rows):
    folder = scans(*files)
    for id in ("benign (1)", "benign (1).png", "x/benign (1).png", "x/benign (1)", "benign"):
        assert list(rows_of(folder, content.format(id=id)).values()) == rows


@pytest.mark.parametrize(
    ("table", "id_column", "message"),
    [
        ("id,age\n1,41\n2,42\n", None, "different rows fit the file name and the folder of '1/2'; use ids with"),
        ("name,age\na,1\n", None, "labels.csv: set id_column to the column that names the scans: name, age"),
        ("name,age\na,1\n", "MRID", "id_column: labels.csv has no column 'MRID'; it has name, age"),
        ("id,age\na,1\nb,2\na,3\n", None, "labels.csv: the id 'a' is in the rows 1 and 3; keep one row per id"),
        ("id,age\nx,1\n", None, "no id in the column id (e.g. 'x') fits a scan (e.g. 'a'); set id_column to"),
        ("id,age\na,1\na.png,2\n", None, "the rows 'a' and 'a.png' both fit the scan 'a'; keep one"),
        ("id,age\n", None, "labels.csv: the table has no rows"),
    ],
)
def test_what_cannot_be_joined_is_said(scans, table, id_column, message):
    with pytest.raises(CohortError) as caught:
        rows_of(scans("a.png", *(["1/3.png", "1/2.png", "2/4.png"] if "\n1," in table else [])), table, id_column)
    assert message in str(caught.value)
    assert len(str(caught.value)) <= 200


def test_decimal_commas_of_a_table_with_semicolons_are_numbers(scans):
    folder = scans("a.png", "b.png")
    table = folder / "labels.csv"
    table.write_text("image;age;site\na.png;41,5;x,1\nb.png;-2,25;y\n", encoding="utf-8-sig")
    labels = [case.labels for case in read_cohort(table)]
    assert labels == [{"age": 41.5, "site": "x,1"}, {"age": -2.25, "site": "y"}]


def paths(*folders, each=3):
    """The folders of three scans in each folder."""
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
    each = paths(*folders)
    assert find_class_folders(each).classes == [folder[level] for folder in each]


@pytest.mark.parametrize(
    "folders",
    [
        [""], ["all"], ["a", ""], ["sub-01/anat", "sub-02/anat", "sub-02/func"], ["sub-01/ses-1", "sub-02/ses-2"],
        ["patient_01", "patient_02", "patient_10"], ["101", "102", "103", "117"], ["T1", "T2", "FLAIR"],
        ["imagesTr", "imagesTs"], ["train", "test"], ["BraTS_001/t1", "BraTS_002/t1"], ["P1/DICOM/S1", "P2/DICOM/S1"],
    ],
)  # fmt: skip
def test_other_folders_are_no_classes(folders):
    assert find_class_folders(paths(*folders)).classes == []
    assert find_class_folders(paths("Ann", "Bob", "Eve", each=1)).classes == []


def test_splits_get_their_standard_names():
    found = find_class_folders(paths("Training/a", "valid/b", "TESTING/a", each=2))
    assert found.splits == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    assert found.classes == ["a", "a", "b", "b", "a", "a"]


def test_any_level_can_be_asked_for():
    found = find_class_folders([("x", "patient_01"), ("x", "patient_02"), ("x",)], strict=False)
    assert found.classes == ["patient_01", "patient_02", None]


@pytest.mark.parametrize(
    ("images", "label_maps"),
    [
        (["BraTS_001/BraTS_001_t1", "BraTS_001/BraTS_001_flair"], ["BraTS_001/BraTS_001_seg"]),
        (["imagesTr/a_0000", "imagesTs/b_0000"], ["labelsTr/a", "labelsTs/b"]),
        (["benign/benign (1)", "benign/benign (2)"], ["benign/benign (1)_mask", "benign/benign (2)_mask_1"]),
        (["patient001_frame01", "patient001_4d"], ["patient001_frame01_gt"]),
        (["case_1/imaging", "case_2/imaging"], ["case_1/segmentation", "case_2/segmentation"]),
        (["s0001/ct"], ["s0001/segmentations/liver", "s0001/segmentations/spleen"]),
        (["COVID/images/1", "Normal/images/1"], ["COVID/masks/1", "Normal/masks/1"]),
        (
            ["sub-01/anat/sub-01_T1w", "sub-01/anat/sub-01_label-x_T2w"],
            ["derivatives/sub-01/anat/sub-01_dseg", "derivatives/sub-01/anat/sub-01_desc-brain_mask",
             "derivatives/sub-01/anat/sub-01_label-GM_probseg"],
        ),
        (["images/ISIC_1", "images/ISIC_2"], ["truth/ISIC_1_segmentation", "truth/ISIC_2_segmentation"]),
        (["a", "other_labels/c", "predictions/a", "lungmask", "with_mask/b", "a_masked"], []),
        (["mask_study_1", "mask_study_2"], []),
        (["a/x", "b/y_seg"], []),  # a label map needs its image
        ([], ["a_seg", "b_seg"]),  # some scans always remain
        ([], ["labels/a", "labels/b"]),
    ],
)  # fmt: skip
def test_label_maps_are_told_from_images(images, label_maps):
    expected = set(label_maps) if images else set()
    assert find_label_maps([*images, *label_maps]) == expected
