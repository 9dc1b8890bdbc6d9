"""Cohorts from folders, tables and datalists: each scan once, with its id, patient, split and labels."""

import json

import pyarrow.parquet as pq
import pytest
from dicom_files import save_series
from scan_files import save_nifti

from monai_diffae.data.cases import as_labels
from monai_diffae.data.cohorts import read_cohort, read_columns
from monai_diffae.data.folders import search_folder
from monai_diffae.data.scans import read_scan
from monai_diffae.errors import CohortError, ConfigError


def refusal(path, **options):
    with pytest.raises(CohortError) as caught:
        read_cohort(path, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) <= 250
    return line


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def table(folder, text, name="cohort.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_folder_is_searched_through(tmp_path):
    touch(
        tmp_path / "b.nii.gz", tmp_path / "train/NORMAL/IM-1.jpeg", tmp_path / "a.mha", tmp_path / "readme.txt",
        tmp_path / ".hidden.nii", tmp_path / ".cache/x.nii",
    )  # fmt: skip
    save_series(tmp_path / "ct")
    cases = read_cohort(tmp_path)
    assert [c.id for c in cases] == ["a", "b", "ct", "IM-1"]
    assert cases[3].item() == {"image": str(tmp_path / "train/NORMAL/IM-1.jpeg"), "id": "IM-1"}
    assert cases[0].patient == "a"
    assert cases == read_cohort(tmp_path)


@pytest.mark.goal(id="R13")
def test_ids_have_folders_or_suffixes_only_where_file_names_are_not_unique(tmp_path):
    touch(tmp_path / "Doe/one.nii", tmp_path / "Roe/two.nii")
    assert [(c.id, c.file_name, c.patient) for c in read_cohort(tmp_path)] == [
        ("one", "one", "one"),
        ("two", "two", "two"),
    ]
    assert [c.id for c in read_cohort(table(tmp_path, "image\nDoe/one.nii\nRoe/two.nii\n"))] == ["one", "two"]
    touch(tmp_path / "Roe/one.nii")
    assert [c.id for c in read_cohort(tmp_path)] == ["Doe_one", "Roe_one", "Roe_two"]
    touch(*(tmp_path / "names" / name for name in ("a.png", "a.nii.gz", "d/b.png", "d_b.png")))
    ids = [c.id for c in read_cohort(tmp_path / "names")]
    assert len(set(ids)) == 4
    assert {"a.png", "a.nii.gz"} < set(ids)


def test_dicom_folders(tmp_path):
    save_series(tmp_path / "p1", 4, "1.2.3", "a", patient="MRN-1")
    save_series(tmp_path / "p1", 3, "1.2.4", "b", patient="MRN-1")
    save_series(tmp_path / "xrays", 3, "1.2.5", patient="MRN-2", modality="DX")
    save_series(tmp_path / "bare", 2, "1.2.6", suffix="", patient="MRN-2")
    touch(tmp_path / "p1/broken.dcm")
    cases = {c.id: c for c in read_cohort(tmp_path)}
    assert len(cases) == 7
    assert {"bare", "broken", "001", "002", "003"} < set(cases)
    series = [c for c in cases.values() if "#series=" in str(c.images["image"])]
    assert sorted(read_scan(c.images["image"]).array.shape[-1] for c in series) == [3, 4]
    assert cases["bare"].patient == cases["001"].patient != series[0].patient == series[1].patient
    assert not any("MRN" in f"{c.id}{c.patient}" or "Planted" in f"{c.id}{c.patient}" for c in cases.values())


def test_what_was_read_of_a_dicom_folder_is_kept(tmp_path):
    scans, headers = tmp_path / "scans", tmp_path / "headers"
    save_series(scans / "p1", 4, "1.2.3", patient="MRN-1")
    save_series(scans / "xrays", 3, "1.2.5", patient="MRN-2", modality="DX")
    touch(scans / "p1/broken.dcm")
    first = search_folder(scans, headers)
    parts = {part: part.stat().st_mtime_ns for part in headers.glob("*.parquet")}
    save_series(scans / "p2", 4, "1.2.6", patient="MRN-1")
    assert len(search_folder(scans, headers).scans) == len(first.scans) + 1
    (new,) = {*headers.glob("*.parquet")} - parts.keys()
    assert len(pq.read_table(new)) == 1  # the files of p2
    assert parts == {part: part.stat().st_mtime_ns for part in parts}
    assert search_folder(scans, headers).scans == search_folder(scans).scans


def test_patients_from_paths(tmp_path):
    touch(tmp_path / "sub-01/anat/sub-01_T1w.nii.gz", tmp_path / "sub-02_T1w.nii.gz", tmp_path / "x/IM-7-2.nii")
    assert [c.patient for c in read_cohort(tmp_path)] == ["sub-01", "sub-02", "IM-7-2"]
    assert [c.patient for c in read_cohort(tmp_path, patient_pattern=r"IM-(\d+)")][2] == "7"
    assert [c.patient for c in read_cohort(tmp_path, patient_pattern=r"IM-\d+")][2] == "IM-7"
    with pytest.raises(ConfigError, match="patient_pattern"):
        read_cohort(tmp_path, patient_pattern="(")


def test_one_file_links_and_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    save_nifti(tmp_path / "data" / "a.nii")
    assert [c.id for c in read_cohort(tmp_path / "data" / "a.nii")] == ["a"]
    (tmp_path / "latest").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "self").symlink_to(tmp_path / "data")
    assert [c.id for c in read_cohort(tmp_path)] == ["a"]  # a folder reached twice by a link counts once
    assert [c.id for c in read_cohort(save_series(tmp_path / "ct"))] == ["ct"]
    (tmp_path / "none").mkdir()
    assert ".nii.gz" in refusal(tmp_path / "none")
    assert "no such" in refusal(tmp_path / "gone")
    with pytest.raises(ConfigError, match="columns: 'imaje' is unknown; use one of image, id, patient"):
        read_cohort(tmp_path, columns={"imaje": "file"})


def test_csv_with_labels(tmp_path):
    touch(tmp_path / "d/a.nii.gz", tmp_path / "d/b.nii.gz")
    text = "image,id,patient,split,age,sex,score\nd/a.nii.gz,x,p1,training,41,F,1\nd/b.nii.gz,y,p2,validation,,M,2.5\n"
    for name, content in {"c.csv": text, "c.tsv": text.replace(",", "\t"), "s.csv": text.replace(",", ";")}.items():
        a, b = read_cohort(table(tmp_path, content, name))
        assert (a.id, a.patient, a.split) == ("x", "p1", "train")
        assert a.labels == {"age": 41, "sex": "F", "score": 1.0}
        assert b.labels == {"age": None, "sex": "M", "score": 2.5}
        assert b.split == "val"
        assert a.images == {"image": str(tmp_path / "d/a.nii.gz")}
    content = "file;id;who;size\nd/a.nii.gz;1,5;2,5;3,5\n"
    (case,) = read_cohort(table(tmp_path, content), columns={"image": "file", "patient": "who"})
    assert (case.id, case.patient, case.labels) == ("1,5", "2,5", {"size": 3.5})


def test_csv_with_other_names_and_more_images(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "a2.nii")
    path = table(tmp_path, "\ufefffile,t2,who\na.nii,a2.nii,p\n")
    line = refusal(path)
    assert "file, t2, who" in line
    assert "--columns#image file" in line
    columns = {"image": "file", "patient": "who"}
    (case,) = read_cohort(path, columns=columns, image_keys=("image", "t2"))
    assert case.item() == {"image": str(tmp_path / "a.nii"), "t2": str(tmp_path / "a2.nii"), "id": "a"}
    assert case.patient == "p"
    assert case.labels == {}
    assert "--columns#patient" in refusal(path, columns={"image": "file", "patient": "nobody"})


@pytest.mark.goal(id="R12")
def test_tables_that_cannot_be_used(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "b.nii")
    for text in ("", "image\n"):
        assert "the table has no rows; it needs a header" in refusal(table(tmp_path, text))
    assert "'x' occurs twice" in refusal(table(tmp_path, "image,id\na.nii,x\nb.nii,x\n"))
    for rows in ("b,a.nii\n,b.nii\n", ",b.nii\nb,a.nii\n"):  # an id, and the name of another case's file
        assert "the id 'b' occurs twice" in refusal(table(tmp_path, f"id,image\n{rows}"))
    assert "same file" in refusal(table(tmp_path, "image\na.nii\nd/../a.nii\n"))
    assert "row 2" in refusal(table(tmp_path, "image,id\na.nii,x\n,y\n"))
    assert "unknown split 'holdout'" in refusal(table(tmp_path, "image,split\na.nii,holdout\n"))
    line = refusal(table(tmp_path, "image,patient,split\na.nii,SECRET,train\nb.nii,SECRET,val\n"))
    assert "'a' (train) and 'b' (val)" in line
    assert "SECRET" not in line
    line = refusal(table(tmp_path, "image\nd/x.nii\nd/y.nii\n"))
    assert "none of its 2 files exists (first: d/x.nii); check the paths, which are relative to the table's" in line
    assert len(read_cohort(table(tmp_path, "image\na.nii\ny.nii\n"))) == 2
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    assert refusal(tmp_path / "t.xlsx") == "t.xlsx: Excel files are not read; save it as CSV, and give that file"
    with pytest.raises(CohortError, match="Excel files are not read"):
        read_columns(tmp_path / "t.xlsx")
    (tmp_path / "bin.csv").write_bytes(b"\xff\xfe\x00image")
    assert "UTF-8" in refusal(tmp_path / "bin.csv")


def test_no_cell_of_a_table_is_lost(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "b.png")
    table = tmp_path / "t.csv"
    table.write_text("image,finding,age\na.png,benign,41\n\nb.png,lung cancer, left lobe,52\n")
    assert "t.csv: line 4 (4 cells) has a value in a column without a name; name the column" in refusal(table)
    table.write_text("image,image,age\na.png,b.png,41\n")
    assert "two columns are called 'image'; rename one" in refusal(table)
    table.write_text('image,finding,age\na.png,"lung cancer, left lobe",41,,\n')  # Excel fills lines with empty cells
    (case,) = read_cohort(table)
    assert case.labels == {"finding": "lung cancer, left lobe", "age": 41}
    table.write_text("image,age,\na.png,41,\nb.png,52,5\n")  # 52,5 years, before a column that Excel has left empty
    assert "t.csv: line 3 (3 cells) has a value in a column without a name" in refusal(table)
    table.write_text(",image,age\n0,a.png,41\n1,b.png,52\n")  # the numbers of the rows, as pandas writes them
    assert [case.labels for case in read_cohort(table)] == [{"age": 41}, {"age": 52}]


def test_one_patient_under_two_names_is_one_or_a_warning_without_the_names(tmp_path, caplog):
    touch(*(tmp_path / f"{name}.png" for name in "abcd"))
    rows = "image,patient,split\na.png,{},train\nb.png,{},test\n"
    assert "'a' (train) and 'b' (test) belong to one patient" in refusal(table(tmp_path, rows.format("1", "1.0")))
    entries = [{"image": f"{case}.png", "patient": name} for case, name in zip("ab", (" p1 ", "p1"), strict=True)]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries[:1], "test": entries[1:]}))
    assert "belong to one patient" in refusal(tmp_path / "list.json")
    for one, other in (("M\u00fcller", "Mu\u0308ller"), ("P12", "P\uff11\uff12")):  # macOS, and full-width digits
        assert "belong to one patient" in refusal(table(tmp_path, rows.format(one, other)))
    read_cohort(table(tmp_path, rows.format("1.0", "1.2") + "c.png,1,train\nd.png,10,test\n"))
    read_cohort(table(tmp_path, rows.format("1-12", "11-2")))
    read_cohort(table(tmp_path, rows.format("P1", "P1").replace("test", "train")))
    assert not caplog.messages
    read_cohort(table(tmp_path, rows.format("Doe-1", "doe _ 01") + "c.png,x,\nd.png,X,\n"))
    assert len(caplog.messages) == 1
    assert "4 patients have names that differ from another's in capitals, spaces, hyphens or" in caplog.text
    assert "oe" not in caplog.text


def test_lines_that_end_early_and_patients_called_na_are_named(tmp_path, caplog):
    touch(tmp_path / "a.png", tmp_path / "b.png")
    cut = table(tmp_path, "image,patient,split,age\na.png,Doe-1,train,41\nb.png,Do")
    assert [case.labels["age"] for case in read_cohort(cut)] == [41, None]
    assert [case.patient for case in read_cohort(table(tmp_path, "image,patient\na.png,NA\nb.png,NA\n"))] == ["NA"] * 2
    assert caplog.messages == [
        "cohort.csv: line 3 has 2 cells, but the table has 4 columns; the missing cells count as empty, so check that "
        "the table is complete",
        "cohort.csv: 2 cases have the patient 'NA', and count as one patient; leave the cell empty if their patients "
        "are unknown",
    ]


def test_datalist(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "b.nii", tmp_path / "c.nii", tmp_path / "d.nii")
    content = {
        "name": "x",
        "training": [{"image": "a.nii", "label": "seg.nii", "age": 3, "box": [1]}, {"image": ["b.nii", "c.nii"]}],
        "test": ["./d.nii"],
    }
    (tmp_path / "list.json").write_text(json.dumps(content))
    a, b, d = read_cohort(tmp_path / "list.json")
    assert (a.id, a.split, a.labels, a.mask) == ("a", "train", {"age": 3}, tmp_path / "seg.nii")
    assert b.item()["image"] == [str(tmp_path / "b.nii"), str(tmp_path / "c.nii")]
    assert (d.id, d.split) == ("d", "test")
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a.nii", "id": 7, "patient": "p"}]))
    (case,) = read_cohort(tmp_path / "list.json")
    assert (case.id, case.patient, case.split) == ("7", "p", None)
    nothing = float("nan")  # as pandas writes what is missing
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a.nii", "patient": nothing, "split": nothing}]))
    (case,) = read_cohort(tmp_path / "list.json")
    assert (case.patient, case.split) == ("a", None)
    for bad in ("{", "3", "{}", '{"training": []}', '{"training": [{"file": "a.nii"}]}', '[{"image": 3}]', "[null]"):
        (tmp_path / "list.json").write_text(bad)
        refusal(tmp_path / "list.json")


def test_the_types_of_labels(caplog):
    assert as_labels({"visit": ["01_02", "7"], "count": ["1", "2"]}) == {"visit": ["01_02", "7"], "count": [1, 2]}
    for word in ("", " ", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "#N/A", "<NA>"):
        assert as_labels({"sex": ["F", word], "age": ["41", word]}) == {"sex": ["F", None], "age": [41, None]}
    assert as_labels({"drug": ["None", "aspirin"]}) == {"drug": ["None", "aspirin"]}
    assert as_labels({"site": ["001", "01", "1"], "month": ["01", "12"]}) == {
        "site": ["001", "01", "1"],
        "month": [1, 12],
    }
    assert not caplog.messages
    assert as_labels({"hpv": ["-", "+"], "empty": ["-", ""]}) == {"hpv": ["-", "+"], "empty": ["-", None]}
    assert as_labels({"age": ["41,5", "7", ""], "note": ["1,5", "a"]})["age"] == ["41,5", "7", None]
    labels = {"psa": ["1.5", "-", "2"], "dose": ["1", "2", "1.040,5"], "volume": ["1.040,5", "2.250,1"]}
    assert as_labels(labels) == {**labels, "psa": [1.5, None, 2.0]}
    assert caplog.messages == [
        "label 'age': is read as text, because numbers such as 41,5 have a comma; write points, or separate the "
        "columns by semicolons",
        "label 'psa': 1 cell such as - taken for missing numbers",
        "label 'dose': is read as text, because 1 of 3 values cannot be read as numbers, the first in row 3, "
        "'1.040,5'; correct or empty such cells",
        "label 'volume': is read as text, because numbers such as 1.040,5 have a comma; write points, or separate the "
        "columns by semicolons",
    ]


@pytest.mark.parametrize(
    ("name", "text", "mask", "labels"),
    [
        ("c.csv", "image,mask\na.nii,1\n", [], {"mask": 1}),
        ("d.json", '[{"image": "a.nii", "grade": 2, "label": "x.nii", "mask": "m.nii"}]', ["m.nii"], {"grade": 2}),
        ("d.json", '[{"image": "a.nii", "grade": 2, "seg": "m.nii"}]', ["m.nii"], {"grade": 2}),
    ],
)
def test_a_mask_is_a_path_and_a_label_is_none(tmp_path, name, text, mask, labels):
    touch(tmp_path / "a.nii")
    (case,) = read_cohort(table(tmp_path, text, name))
    assert ([case.mask] if case.mask else [], case.labels) == ([tmp_path / each for each in mask], labels)


@pytest.mark.parametrize("files", ["../T1/p1.nii,../FLAIR/p1.nii", "p1.nii,_p1.nii"])
def test_sequences_of_a_table_may_lie_elsewhere(tmp_path, files):
    touch(*(tmp_path / "tables" / name for name in files.split(",")))
    (case,) = read_cohort(table(tmp_path / "tables", f"T1,FLAIR\n{files}\n"))
    assert case.id == "p1"
