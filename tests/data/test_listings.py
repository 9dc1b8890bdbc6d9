"""Listings: ids as given, labels from folders, tables and BIDS, and the table that is written."""

import csv

import pytest
from scan_files import save_series

from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.formats.dicom import hash_patient
from monai_diffae.data.listing import Sources, list_cases, write_listing
from monai_diffae.data.listing.pseudonyms import with_hashes
from monai_diffae.data.patient_keys import KEY_FILE, folder_key
from monai_diffae.errors import CohortError, ConfigError

ULTRASOUND = [f"{kind}/{kind} ({n}).png" for kind in ("benign", "malignant") for n in (1, 2)]


def test_class_folders_are_a_label_and_ids_stay_as_given(scans):
    listing = list_cases(scans(*ULTRASOUND, "benign/benign (1)_mask.png"))
    assert [case.id for case in listing.cases] == ["benign (1)", "benign (2)", "malignant (1)", "malignant (2)"]
    assert listing.labels == {"label": {"benign": 2, "malignant": 2}}
    assert listing.notes == [
        "label maps beside the scans are left out: 1, e.g. benign/benign (1)_mask.png",
        "the folders benign, malignant are classes: column label (--no-labels-from-folders omits it)",
    ]


def test_class_folders_can_be_ignored_or_renamed(scans):
    folder = scans(*ULTRASOUND)
    assert list_cases(folder, Sources(from_folders=False)).labels == {}
    assert list(list_cases(folder, Sources(label="kind")).labels) == ["kind"]
    with pytest.raises(CohortError, match="not in two folders of one level"):
        list_cases(folder / "benign", Sources(from_folders=True))


def test_ids_have_their_folders_if_names_occur_twice(scans):
    folder = scans("train/NORMAL/1.png", "train/NORMAL/2.png", "test/SICK/1.png", "test/SICK/2.png")
    listing = list_cases(folder)
    assert [case.id for case in listing.cases] == ["test/SICK/1", "test/SICK/2", "train/NORMAL/1", "train/NORMAL/2"]
    assert listing.splits == {"train": 2, "test": 2}


def test_participants_of_bids_are_joined(scans):
    folder = scans("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/func/sub-01_bold.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    (folder / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t41\tF\nsub-02\tn/a\tM\n")
    cases = list_cases(folder).cases
    assert [case.labels for case in cases] == [
        {"age": 41, "sex": "F", "suffix": "T1w"},
        {"age": 41, "sex": "F", "suffix": "bold"},
        {"age": None, "sex": "M", "suffix": "T1w"},
    ]
    assert [case.patient for case in cases] == ["sub-01", "sub-01", "sub-02"]


def list_with(table, content, folder, columns=None, **sources):
    table.write_text(content)
    return list_cases(folder, Sources(table=table, **sources), columns)


def test_a_table_gives_ids_splits_and_patients(scans, tmp_path):
    table, folder = tmp_path / "labels.csv", scans("a.png", "b.png")
    for header in ("file,split,patient,grade", "file,Split,Patient,grade"):
        listing = list_with(table, f"{header}\na.png,Training,p1,2\nb.png,test,p2,3\n", folder)
        assert [(c.id, c.split, c.patient, c.labels) for c in listing.cases] == [
            ("a.png", "train", "p1", {"grade": 2}),
            ("b.png", "test", "p2", {"grade": 3}),
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


def test_rows_that_fit_scans_of_other_folders_are_refused(scans, tmp_path):
    table, folder = tmp_path / "labels.csv", scans("benign/1.png", "benign/2.png", "malignant/1.png", "malignant/2.png")
    with pytest.raises(CohortError, match="row 1 fits the scans 'benign/1' and 'malignant/1' of other folders"):
        list_with(table, "file,age\n1.png,41\n2.png,52\n", folder)


def test_a_class_folder_is_not_the_id_of_a_row(scans):
    folder = scans("0/17.png", "0/18.png", "1/19.png", "1/20.png")
    table = folder.parent / "ages.csv"
    table.write_text("id,age\n17,40\n18,50\n19,60\n0,1\n1,2\n")
    cases = list_cases(folder, Sources(table=table)).cases
    assert {case.id: case.labels["age"] for case in cases} == {"17": 40, "18": 50, "19": 60, "20": None}
    table.write_text("id,age\n0,1\n1,2\n")
    with pytest.raises(CohortError, match=r"if the folders 0, 1 are not classes, use --no-labels-from-folders"):
        list_cases(folder, Sources(table=table))


def test_a_tables_label_wins_over_folders_that_were_not_asked_for(scans, tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\nbenign (1),0\n")
    listing = list_cases(scans(*ULTRASOUND), Sources(table=tmp_path / "labels.csv"))
    assert listing.labels == {"label": {0: 1, None: 3}}
    assert "labels.csv has a column label, so the folders are not used as labels" in listing.notes
    with pytest.raises(CohortError, match="its column 'label' is also found in the folders"):
        list_cases(scans(*ULTRASOUND), Sources(table=tmp_path / "labels.csv", from_folders=True))


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


def test_the_tables_own_ids_win_over_its_file_names(scans, tmp_path):
    (tmp_path / "labels.csv").write_text("id,file,age\ncase 1,x/a.png,41\ncase 2,x/b.png,52\n")
    listing = list_cases(scans("x/a.png", "x/b.png"), Sources(table=tmp_path / "labels.csv"))
    assert [(c.id, c.labels) for c in listing.cases] == [("case 1", {"age": 41}), ("case 2", {"age": 52})]


def test_sessions_with_rows_of_their_own_keep_their_ids(scans, tmp_path):
    folder = scans(*(f"sub-1/ses-{n}/anat/sub-1_ses-{n}_T1w.nii.gz" for n in (1, 2)))
    (folder / "participants.tsv").write_text("participant_id\tsession_id\tage\nsub-1\t1\t41\nsub-1\t2\t42\n")
    cases = read_cohort(write_listing(list_cases(folder), tmp_path / "scans.csv"))
    assert [(case.id, case.patient, case.labels["age"]) for case in cases] == [
        ("sub-1_ses-1_T1w", "sub-1", 41),
        ("sub-1_ses-2_T1w", "sub-1", 42),
    ]


def test_an_id_from_the_table_that_another_scan_has_is_not_used(scans, tmp_path):
    folder = scans("a.png", "b.png")
    table = tmp_path / "labels.csv"
    table.write_text("file,id,age\na.png,b,40\n")
    listing = list_cases(folder, Sources(table=table))
    assert [case.id for case in read_cohort(write_listing(listing, tmp_path / "scans.csv"))] == ["a", "b"]


def test_a_scan_outside_of_the_folders_of_splits_is_named(scans):
    folder = scans("train/N/a.png", "train/S/b.png", "test/N/c.png", "test/S/d.png", "logo.png")
    notes = list_cases(folder).notes
    assert any("are no column split, because logo is in none of them" in note for note in notes)
    (folder / "logo.png").unlink()
    assert not any("no column split" in note for note in list_cases(folder).notes)


def test_a_patient_in_two_folders_of_splits_is_refused_when_listed(scans):
    folder = scans("train/N/p1_a.png", "train/S/p2_a.png", "test/N/p1_b.png", "test/S/p3_a.png")
    with pytest.raises(CohortError, match=r"(train|test)\) and .* belong to one patient"):
        list_cases(folder, Sources(patient_pattern=r"p\d"))


def test_a_patient_id_joins_dicom_and_is_not_written(tmp_path):
    for patient in ("MRN-0042", "MRN-0043"):
        save_series(tmp_path / "scans" / f"ct{patient[-1]}", patient=patient)
    (tmp_path / "labels.csv").write_text("PatientID,age\nMRN-0043,52\nMRN-0042,41\n")
    listing = list_cases(tmp_path / "scans", Sources(table=tmp_path / "labels.csv"))
    assert [(case.id, case.labels) for case in listing.cases] == [("ct2", {"age": 41}), ("ct3", {"age": 52})]
    assert "MRN" not in write_listing(listing, tmp_path / "scans.csv").read_text()


@pytest.mark.goal(id="R21")
def test_patient_ids_are_hashed_with_the_key_of_the_folder(tmp_path):
    for number in (1, 2, 3):
        save_series(tmp_path / "scans" / f"ct{number}", uid=f"1.2.{number}", patient=f"MRN-{number // 2}")
    cases = list_cases(tmp_path / "scans").cases
    hashed = with_hashes(cases, tmp_path)
    key = folder_key(tmp_path)
    assert [case.patient for case in hashed] == [key.hash(hash_patient(f"MRN-{n // 2}")) for n in (1, 2, 3)]
    assert [case.id for case in hashed] == ["ct1", "ct2", "ct3"]


def test_names_that_files_give_stay_and_need_no_key(tmp_path, scans):
    cases = list_cases(scans("sub-01_T1w.nii.gz")).cases
    assert with_hashes(cases, tmp_path) == cases
    assert not (tmp_path / KEY_FILE).exists()


@pytest.mark.goal(id="R21")
def test_hashed_ids_are_unique_and_stay_the_same(tmp_path, scans):
    cases = list_cases(scans("Doe.nii.gz", "sub-01/sub-01_T1w.nii.gz", "sub-01/sub-01_T2w.nii.gz")).cases
    hashed = with_hashes(cases, tmp_path, "hashed")
    assert hashed == with_hashes(cases, tmp_path, "hashed")
    assert len({case.id for case in hashed}) == 3
    assert all(case.id == case.file_name and case.id.startswith("case-") for case in hashed)
    assert [case.has_own_patient for case in hashed] == [True, False, False]
    assert hashed[1].patient == hashed[2].patient != "sub-01"
