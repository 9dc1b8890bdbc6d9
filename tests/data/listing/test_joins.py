"""Tables joined to scans: every way to name a scan, and what is refused."""

import pytest

from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.listing.joins import join_table
from monai_diffae.errors import CohortError


def rows_of(folder, content, id_column=None):
    table = folder.parent / "labels.csv"
    table.write_text(content, encoding="utf-8")
    cases = read_cohort(folder)
    return dict(zip([case.id for case in cases], join_table(cases, folder, table, id_column).rows, strict=True))


@pytest.mark.parametrize("id", ["benign (1)", "benign (1).png", "x/benign (1).png", "x/benign (1)", "benign"])
def test_a_scan_is_named_by_its_file_path_or_the_beginning_of_its_name(scans, id):
    assert rows_of(scans("x/benign (1).png"), f"file,age\nother,1\n{id},2\n") == {"benign_1": 1}


@pytest.mark.parametrize("id", ["sub-01", "01"])
def test_a_subject_has_all_its_scans(scans, id):
    folder = scans("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    assert list(rows_of(folder, f"participant_id,age\n{id},41\n").values()) == [0, 0, None]


def test_sessions_have_rows_of_their_own(scans):
    folder = scans("sub-1/ses-1/sub-1_ses-1_T1w.nii", "sub-1/ses-2/sub-1_ses-2_T1w.nii")
    table = "participant_id,session_id,age\nsub-1,ses-2,42\nsub-1,1,41\n"
    assert list(rows_of(folder, table).values()) == [1, 0]


def test_the_name_of_a_folder_is_an_id(scans):
    folder = scans("OAS1_0001_MR1/a.nii", "OAS1_0001_MR1/b.nii", "OAS1_0002_MR1/a.nii")
    assert list(rows_of(folder, "MRI,CDR\nOAS1_0002_MR1,0\nOAS1_0001_MR1,1\n", "MRI").values()) == [1, 1, 0]


def test_a_whole_name_wins_over_its_beginning(scans):
    assert rows_of(scans("a_1.nii", "a_2.nii"), "id,age\na,1\na_2,2\n") == {"a_1": 0, "a_2": 1}


@pytest.mark.parametrize(
    ("table", "id_column", "message"),
    [
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
        rows_of(scans("a.png"), table, id_column)
    assert message in str(caught.value)
    assert len(str(caught.value)) <= 200


def test_the_notes_count_and_name_what_has_no_counterpart(scans, tmp_path):
    folder = scans("a.png", "b.png", "c.png")
    table = tmp_path / "labels.csv"
    table.write_text("id,age\na,1\nx,2\n")
    cases = read_cohort(folder)
    assert list(join_table(cases, folder, table).notes("labels.csv", cases)) == [
        "labels.csv: 1 of 3 scans have a row (joined by the column id)",
        "2 scans have no row, so no labels: b, c",
        "1 rows have no scan: x",
    ]


def test_paths_of_windows_and_letters_of_macos_are_the_same_name(scans):
    folder = scans("x/a.png", "x/Mu\u0308ller.png")
    assert list(rows_of(folder, "file,age\nx\\a.png,1\n.\\x\\M\u00fcller.png,2\n").values()) == [1, 0]


def test_a_session_is_an_ordinary_column_if_no_scan_has_one(scans):
    assert rows_of(scans("P1.png", "P2.png"), "id,session,age\nP2,1,40\nP1,1,50\n") == {"P1": 1, "P2": 0}


def test_numbered_images_in_folders_of_patients_are_not_taken_for_patients(scans):
    folder = scans("1/3.png", "1/2.png", "2/4.png")
    with pytest.raises(CohortError, match="different rows fit the file name and the folder of '1/2'; use ids with"):
        rows_of(folder, "id,age\n1,41\n2,42\n")
    assert list(rows_of(folder, "id,age\n1/2,1\n1/3,2\n2/4,3\n").values()) == [0, 1, 2]


def test_decimal_commas_of_a_table_with_semicolons_are_numbers(scans):
    folder = scans("a.png", "b.png")
    table = folder / "labels.csv"
    table.write_text("image;age;site\na.png;41,5;x,1\nb.png;-2,25;y\n", encoding="utf-8-sig")
    labels = [case.labels for case in read_cohort(table)]
    assert labels == [{"age": 41.5, "site": "x,1"}, {"age": -2.25, "site": "y"}]
