"""Listings: ids, labels from folders, tables and BIDS, the rows of scans, and the table that is written."""

import csv

import pytest
from dicom_files import save_series

from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.folders import find_label_maps
from monai_diffae.data.inspection.listing import Sources, find_class_folders, join_table, list_cases, write_listing
from monai_diffae.errors import CohortError, ConfigError

ULTRASOUND = [f"{kind}/{kind} ({n}).png" for kind in ("benign", "malignant") for n in (1, 2)]


def test_participants_of_bids_are_joined(scans):
    folder = scans("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/func/sub-01_bold.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    (folder / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t41\tF\nsub-02\tn/a\tM\n")
    cases = list_cases(folder).cases
    assert [case.labels for case in cases] == [{"age": 41, "sex": "F"}, {"age": None, "sex": "M"}]
    assert [case.patient for case in cases] == ["sub-01", "sub-02"]
    assert [list(case.sequences) for case in cases] == [["T1w", "bold"], ["T1w"]]


def list_with(table, content, folder, columns=None, **sources):
    table.write_text(content)
    return list_cases(folder, Sources(table=table, **sources), columns)


def test_a_table_gives_ids_splits_and_patients(scans, tmp_path):
    table, folder = tmp_path / "labels.csv", scans("a.png", "b.png")
    for header in ("file,split,patient,grade", "file,Split,Patient,grade"):
        listing = list_with(table, f"{header}\na.png,Training,p1,2\nb.png,test,p2,3\n", folder)
        assert [(c.id, c.split, c.patient, c.labels) for c in listing.cases] == [
            ("a", "train", "p1", {"grade": 2}),
            ("b", "test", "p2", {"grade": 3}),
        ]
    assert "split: the column Split of labels.csv" in listing.notes
    cases = list_with(table, "id,Split\na,1\nb,2\n", folder).cases  # no names of splits, so a label
    assert [(case.split, case.labels) for case in cases] == [(None, {"Split": 1}), (None, {"Split": 2})]


def test_scans_with_one_row_or_patient_are_one_patient(scans, tmp_path):
    table, folder = tmp_path / "labels.csv", scans("p1_a.nii", "p1_b.nii", "p2_a.nii")
    cases = list_with(table, "MRID,age\np1,41\np2,52\n", folder).cases
    assert [(c.id, c.patient, c.labels["age"]) for c in cases] == [
        ("p1_a", "p1", 41),
        ("p1_b", "p1", 41),
        ("p2_a", "p2", 52),
    ]
    for name, columns in (("subject_id", {}), ("who", {"patient": "who"})):
        cases = list_with(table, f"file,{name}\np1_a,x\np1_b,x\np2_a,y\n", folder, columns).cases
        assert [(case.patient, case.labels) for case in cases] == [("x", {}), ("x", {}), ("y", {})]
    with pytest.raises(CohortError, match="columns: labels.csv has no column 'x'; it has file"):
        list_cases(folder, Sources(table=table), {"patient": "x"})
    with pytest.raises(ConfigError, match="columns: there is no table whose columns it could name; omit columns"):
        list_cases(folder, Sources(), {"patient": "x"})


@pytest.mark.parametrize(
    ("stems", "ends"),
    [
        (("CASE_001", "CASE_002", "CASE_003"), ("_0000", "_0001", "_0002")),  # nnU-Net
        (("la", "lb", "lc"), ("_0000", "_0001")),
        (("B-GLI-00000-000/B-GLI-00000-000", "B-GLI-00002-000/B-GLI-00002-000"), ("-t1c", "-t1n", "-t2f")),  # BraTS
        (("BraTS20_001", "BraTS20_002"), ("_t1ce", "_flair")),
        (("patient01", "patient02"), ("/FLAIR", "/T1")),
        (("sub-01", "sub-02"), ("_T1w", "_FLAIR")),  # BIDS
    ],
)
def test_sequences_are_one_case(scans, tmp_path, stems, ends):
    folder = scans(*(f"{stem}{end}.nii.gz" for stem in stems for end in ends))
    cases, listing = read_cohort(folder), list_cases(folder)
    assert [case.id for case in cases] == [stem.split("/")[-1] for stem in stems]
    assert all(list(case.sequences) == sorted(end[1:] for end in ends) for case in cases)
    assert listing.num_patients == len(stems)
    written = read_cohort(write_listing(listing, tmp_path / "scans.csv"))
    assert [(case.id, list(case.sequences)) for case in written] == [(case.id, list(case.sequences)) for case in cases]
    (tmp_path / "labels.csv").write_text("id,age\n" + "".join(f"{stem.split('/')[0]},1\n" for stem in stems))
    assert [case.labels for case in list_cases(folder, Sources(table=tmp_path / "labels.csv")).cases] == [
        {"age": 1} for _ in stems
    ]


def test_many_frames_of_a_patient_are_scans_of_one_patient(scans):
    cases = read_cohort(scans(*(f"patient{n}_{frame:04d}.png" for n in (0, 1) for frame in range(40))))
    assert (len(cases), len({case.patient for case in cases})) == (80, 2)


def test_two_files_of_one_sequence_are_both_left_out(scans):
    listing = list_cases(scans(*(f"{name}.nii" for name in ("p1-T1", "p1_T1", "p1_FLAIR", "p2_T1", "p2_FLAIR"))))
    assert [sorted(case.sequences) for case in listing.cases] == [["FLAIR"], ["FLAIR", "T1"]]
    assert "p1-T1 and p1_T1 are both T1 of p1, so neither is used" in listing.notes[0]


@pytest.mark.parametrize(
    "names",
    [
        [f"scan_{n:04d}" for n in range(100)],
        [f"{kind}_{n:04d}" for kind in ("benign", "malignant") for n in range(4)],
        [f"p{n}_0000" for n in range(9)],
        [f"IM-{n:04d}-0001" for n in range(9)] + [f"IM-{n}-0001-000{k}" for n in (91, 92) for k in (1, 2)],
        [f"p{n}_{'ct' if n % 2 else 'mr'}" for n in range(9)],
    ],
)
def test_counters_and_single_sequences_are_no_sequences_of_one_patient(scans, names):
    assert len(read_cohort(scans(*(f"{name}.nii.gz" for name in names)))) == len(names)


def test_a_class_folder_is_not_the_id_of_a_row(scans):
    folder = scans("0/17.png", "0/18.png", "1/19.png", "1/20.png")
    table = folder.parent / "ages.csv"
    table.write_text("id,age\n17,40\n18,50\n19,60\n0,1\n1,2\n")
    cases = list_cases(folder, Sources(table=table)).cases
    assert {case.id: case.labels["age"] for case in cases} == {"17": 40, "18": 50, "19": 60, "20": None}
    table.write_text("id,age\n0,1\n1,2\n")
    with pytest.raises(CohortError, match=r"if the folders 0, 1 are not classes, use --no-labels-from-folders"):
        list_cases(folder, Sources(table=table))


def test_the_written_table_is_read_as_the_same_cohort(scans, tmp_path):
    listing = list_cases(scans(*ULTRASOUND))
    table = write_listing(listing, tmp_path / "tables" / "scans.csv")
    with open(table, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {
        "image": "../scans/benign/benign (1).png", "id": "benign (1)", "label": "benign",
    }  # fmt: skip
    assert [case.labels for case in read_cohort(table)] == [case.labels for case in listing.cases]


def test_another_file_is_replaced_on_request_only(scans, tmp_path):
    listing, table = list_cases(scans(*ULTRASOUND)), tmp_path / "scans.csv"
    write_listing(listing, write_listing(listing, table))
    table.write_text("image\n")
    with pytest.raises(ConfigError, match=r"scans\.csv: exists and has other content; set overwrite"):
        write_listing(listing, table)
    assert "benign (1)" in write_listing(listing, table, overwrite=True).read_text()
    with pytest.raises(ConfigError, match=r"the table is a \.csv or \.tsv"):
        write_listing(listing, tmp_path / "scans")


def test_a_patient_id_joins_dicom_and_is_not_written(tmp_path):
    for patient in ("MRN-0042", "MRN-0043"):
        save_series(tmp_path / "scans" / f"ct{patient[-1]}", patient=patient)
    (tmp_path / "labels.csv").write_text("PatientID,age\nMRN-0043,52\nMRN-0042,41\n")
    listing = list_cases(tmp_path / "scans", Sources(table=tmp_path / "labels.csv"))
    assert [(case.id, case.labels) for case in listing.cases] == [("ct2", {"age": 41}), ("ct3", {"age": 52})]
    assert "MRN" not in write_listing(listing, tmp_path / "scans.csv").read_text()


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
        (["sub-01/sub-01_T1w.nii.gz", "sub-01/sub-01_T2w.nii.gz"], "participant_id,age\nsub-01,41\n", [0]),
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
        ("id,age\na,1\nb,2\na,3\n", None, "labels.csv: the id 'a' is in the rows 1 and 3; keep one row per id"),
        ("id,age\nx,1\n", None, "no id in the column id (e.g. 'x') fits a scan (e.g. 'a'); set id_column to"),
    ],
)
def test_what_cannot_be_joined_is_said(scans, table, id_column, message):
    with pytest.raises(CohortError) as caught:
        rows_of(scans("a.png", *(["1/3.png", "1/2.png", "2/4.png"] if "\n1," in table else [])), table, id_column)
    assert message in str(caught.value)
    assert len(str(caught.value)) <= 200


def test_decimal_commas_of_a_table_with_semicolons_are_numbers(scans, caplog):
    folder = scans("a.png", "b.png")
    table = folder / "labels.csv"
    table.write_text("image;age;site\na.png;41,5;x,1\nb.png;-2,25;y\n", encoding="utf-8-sig")
    labels = [case.labels for case in read_cohort(table)]
    assert labels == [{"age": 41.5, "site": "x,1"}, {"age": -2.25, "site": "y"}]
    table.write_text("image;volume\na.png;1,043\nb.png;2,250\n")
    read_cohort(table)
    assert "numbers in 'volume' such as 1,043 have a decimal comma; if it separates thousands" in caplog.text


def paths(*folders, each=3):
    """The folders of three scans in each folder."""
    return [tuple(folder.split("/")) if folder else () for folder in folders for _ in range(each)]


@pytest.mark.parametrize(
    ("folders", "level"),
    [
        (["NORMAL", "PNEUMONIA"], 0),
        (["data/yes", "data/no"], 1),
        (["train/NORMAL", "train/PNEUMONIA", "test/NORMAL", "validation/PNEUMONIA"], 1),
        (["NORMAL/train", "NORMAL/test", "AD/train"], 0),
        (["0", "1", "2", "3", "4"], 0),
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


@pytest.mark.parametrize(
    ("images", "label_maps"),
    [
        (["BraTS_001/BraTS_001_t1", "BraTS_001/BraTS_001_flair"], ["BraTS_001/BraTS_001_seg"]),
        (["imagesTr/a_0000", "imagesTs/b_0000"], ["labelsTr/a", "labelsTs/b"]),
        (["benign/benign (1)", "benign/benign (2)"], ["benign/benign (1)_mask", "benign/benign (2)_mask_1"]),
        (["patient001_frame01", "patient001_4d"], ["patient001_frame01_gt"]),
        (["case_1/imaging", "case_2/imaging"], ["case_1/segmentation", "case_2/segmentation"]),
        (["mri/T1", "mri/brain"], ["mri/aseg", "mri/ribbon", "mri/wmparc"]),
        (["s0001/ct"], ["s0001/segmentations/liver", "s0001/segmentations/spleen"]),
        (["COVID/images/1", "Normal/images/1"], ["COVID/masks/1", "Normal/masks/1"]),
        (
            ["sub-01/anat/sub-01_T1w", "sub-01/anat/sub-01_label-x_T2w"],
            ["derivatives/sub-01/anat/sub-01_dseg", "derivatives/sub-01/anat/sub-01_desc-brain_mask",
             "derivatives/sub-01/anat/sub-01_label-GM_probseg"],
        ),
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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["p1", "p1_tumor", "p1_lesion", "p1_annotation"], ["p1_tumor", "p1_lesion", "p1_annotation"]),
        (["p1_tumor", "p1_tumor_mask", "tumor_2", "normal_2"], ["p1_tumor_mask"]),
    ],
)
def test_findings_are_label_maps_only_beside_their_scan(names, expected):
    assert find_label_maps(names) == {*expected}
