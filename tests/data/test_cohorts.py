import json
import logging
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scan_files import save_nifti, save_series, shared, values

from monai_diffae.data.cases import safe_id, safe_ids
from monai_diffae.data.cohort_split import split_cohort
from monai_diffae.data.cohorts import (
    Case,
    Failure,
    assign_splits,
    expand_slices,
    fingerprint,
    read_cohort,
    write_failures,
)
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


# ---------------------------------------------------------------- folders


def test_folder_is_searched_through(tmp_path):
    touch(
        tmp_path / "b.nii.gz",
        tmp_path / "train/NORMAL/IM-1.jpeg",
        tmp_path / "a.mha",
        tmp_path / "readme.txt",
        tmp_path / ".hidden.nii",
        tmp_path / ".cache/x.nii",
    )
    save_series(tmp_path / "ct")
    cases = read_cohort(tmp_path)
    assert [c.id for c in cases] == ["a", "b", "ct", "IM-1"]
    assert cases[3].item() == {"image": str(tmp_path / "train/NORMAL/IM-1.jpeg"), "id": "IM-1"}
    assert cases[0].patient == "a"
    assert cases == read_cohort(tmp_path)


@pytest.mark.goal(id="R13")
def test_names_that_differ_in_the_suffix_only(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "a.nii.gz", tmp_path / "d/b.png", tmp_path / "d_b.png")
    ids = [c.id for c in read_cohort(tmp_path)]
    assert len(set(ids)) == 4
    assert {"a.png", "a.nii.gz"} < set(ids)


def test_folders_are_in_ids_only_if_file_names_are_not_unique(tmp_path):
    touch(tmp_path / "Doe/t1.nii", tmp_path / "Roe/t2.nii")
    assert [(c.id, c.file_name, c.patient) for c in read_cohort(tmp_path)] == [("t1", "t1", "t1"), ("t2", "t2", "t2")]
    rows = table(tmp_path, "image\nDoe/t1.nii\nRoe/t2.nii\n")
    assert [c.id for c in read_cohort(rows)] == ["t1", "t2"]
    touch(tmp_path / "Roe/t1.nii")
    assert [c.id for c in read_cohort(tmp_path)] == ["Doe_t1", "Roe_t1", "Roe_t2"]


def test_label_maps_beside_the_images_are_no_scans(tmp_path, caplog):
    for name in ("imagesTr/a", "labelsTr/a", "imagesTs/b", "predictions/a", "other/labels/c"):
        touch(tmp_path / f"{name}.nii.gz")
    assert [c.id for c in read_cohort(tmp_path)] == ["imagesTr_a", "imagesTs_b", "other_labels_c", "predictions_a"]
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path.name}: label maps beside the scans are left out: 1, e.g. labelsTr/a.nii.gz"
    ]
    caplog.clear()
    assert [c.id for c in read_cohort(tmp_path / "labelsTr")] == ["a"]
    assert not caplog.records


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


def test_patients_from_paths(tmp_path):
    touch(tmp_path / "sub-01/anat/sub-01_T1w.nii.gz", tmp_path / "sub-02_T1w.nii.gz", tmp_path / "x/IM-7-2.nii")
    assert [c.patient for c in read_cohort(tmp_path)] == ["sub-01", "sub-02", "IM-7-2"]
    assert [c.patient for c in read_cohort(tmp_path, patient_pattern=r"IM-(\d+)")][2] == "7"
    assert [c.patient for c in read_cohort(tmp_path, patient_pattern=r"IM-\d+")][2] == "IM-7"
    with pytest.raises(ConfigError, match="patient_pattern"):
        read_cohort(tmp_path, patient_pattern="(")


def test_one_file_and_nothing(tmp_path):
    touch(tmp_path / "a.nii.gz")
    assert [c.id for c in read_cohort(tmp_path / "a.nii.gz")] == ["a"]
    assert [c.id for c in read_cohort(save_series(tmp_path / "ct"))] == ["ct"]
    (tmp_path / "none").mkdir()
    assert ".nii.gz" in refusal(tmp_path / "none")
    assert "no such" in refusal(tmp_path / "gone")


# ---------------------------------------------------------------- tables


def test_csv_with_labels(tmp_path):
    touch(tmp_path / "d/a.nii.gz", tmp_path / "d/b.nii.gz")
    text = "image,id,patient,split,age,sex,score\nd/a.nii.gz,x,p1,training,41,F,1\nd/b.nii.gz,y,p2,validation,,M,2.5\n"
    for name, content in {"c.csv": text, "c.tsv": text.replace(",", "\t"), "s.csv": text.replace(",", ";")}.items():
        a, b = read_cohort(table(tmp_path, content, name))
        assert (a.id, a.patient, a.split) == ("x", "p1", "train")
        assert a.labels == {"age": 41, "sex": "F", "score": 1.0}
        assert b.labels == {"age": None, "sex": "M", "score": 2.5}
        assert b.split == "val"
        assert a.images == {"image": tmp_path / "d/a.nii.gz"}


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


def test_absolute_paths_outside_the_tables_folder(tmp_path):
    touch(tmp_path / "data/x/a.nii", tmp_path / "data/y/a.nii")
    (tmp_path / "tables").mkdir()
    rows = "\n".join(str(tmp_path / f"data/{d}/a.nii") for d in "xy")
    assert [c.id for c in read_cohort(table(tmp_path / "tables", f"image\n{rows}\n"))] == ["x_a", "y_a"]
    assert [c.id for c in read_cohort(table(tmp_path / "tables", "image\n../data/x/a.nii\n../data/y/a.nii\n"))] == [
        "x_a",
        "y_a",
    ]


@pytest.mark.goal(id="R12")
def test_tables_that_cannot_be_used(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "b.nii")
    assert "empty" in refusal(table(tmp_path, ""))
    assert "no rows" in refusal(table(tmp_path, "image\n"))
    assert "'x' occurs twice" in refusal(table(tmp_path, "image,id\na.nii,x\nb.nii,x\n"))
    assert "same file" in refusal(table(tmp_path, "image\na.nii\n./a.nii\n"))
    assert "row 2" in refusal(table(tmp_path, "image,id\na.nii,x\n,y\n"))
    assert "unknown split 'holdout'" in refusal(table(tmp_path, "image,split\na.nii,holdout\n"))
    line = refusal(table(tmp_path, "image,patient,split\na.nii,SECRET,train\nb.nii,SECRET,val\n"))
    assert "'a' (train) and 'b' (val)" in line
    assert "SECRET" not in line
    line = refusal(table(tmp_path, "image\nd/x.nii\nd/y.nii\n"))
    assert (
        "none of its 2 files exists (first: d/x.nii); check the paths, which are relative to the table's folder" in line
    )
    assert "(first: d/x.nii)" in refusal(table(tmp_path, f"image\n{tmp_path}/d/x.nii\n"))
    assert "(first: x.nii)" in refusal(table(tmp_path, "image\n/d/x.nii\n"))
    assert f"(first: ...{'y' * 91}/x.nii)" in refusal(table(tmp_path, f"image\n{'y' * 200}/x.nii\n"))
    assert len(read_cohort(table(tmp_path, "image\na.nii\ny.nii\n"))) == 2
    (tmp_path / "bin.csv").write_bytes(b"\xff\xfe\x00image")
    assert "UTF-8" in refusal(tmp_path / "bin.csv")


@pytest.mark.goal(id="R12")
def test_the_time_to_read_a_table_grows_with_its_rows(tmp_path):
    touch(tmp_path / "d/0.png")

    def seconds(number):
        rows = "\n".join(f"d/{i}.png,p{i // 3},{i % 2}" for i in range(number))
        path = table(tmp_path, f"image,patient,label\n{rows}\n")
        start = time.process_time()
        assert len(assign_splits(read_cohort(path))) == number
        return time.process_time() - start

    seconds(10)  # imports
    assert seconds(50_000) < 30 * seconds(5_000)  # 100 times as long if rows were compared with each other


def test_datalist(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "b.nii", tmp_path / "c.nii", tmp_path / "d.nii")
    content = {
        "name": "x",
        "training": [{"image": "a.nii", "label": "seg.nii", "age": 3, "box": [1]}, {"image": ["b.nii", "c.nii"]}],
        "test": ["./d.nii"],
    }
    (tmp_path / "list.json").write_text(json.dumps(content))
    a, b, d = read_cohort(tmp_path / "list.json")
    assert (a.id, a.split, a.labels) == ("a", "train", {"label": "seg.nii", "age": 3})
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


def test_labels_that_are_lists_or_mappings_are_ignored_with_one_warning(tmp_path, caplog):
    touch(tmp_path / "a.nii", tmp_path / "b.nii", tmp_path / "c.nii")
    entry = {"label": [1, 0], "age": 3, "box": {"x": 1}, "id": "1"}
    content = {"training": [{"image": ["a.nii"], **entry}, {"image": "b.nii", "label": 1}], "test": ["c.nii"]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    cases = read_cohort(tmp_path / "list.json")
    assert [case.labels for case in cases] == [{"age": 3}, {"label": 1}, {}]
    assert caplog.messages == [
        "list.json: lists and mappings cannot be labels, so these are ignored: box, label; give each value a key of "
        "its own"
    ]
    caplog.clear()
    read_cohort(tmp_path / "list.json", columns={"id": "age"}, image_keys=["image"])
    assert "so these are ignored: box, label;" in caplog.text
    (tmp_path / "list.json").write_text(json.dumps([{"image": ["a.nii"], "second": ["b.nii"], "age": 3, "sex": None}]))
    caplog.clear()
    read_cohort(tmp_path / "list.json", image_keys=["image", "second"])
    assert not caplog.messages


NASTY = [
    "../../etc/passwd", "/etc/passwd", "..", ".", "", "a\0b", "CON", "nul.txt", "x" * 300, "ａ／ｂ", "a\u202eb",
    "..\\..\\x", "C:\\x", "-rf", "~root", "a\nb", "名前", "é" * 200,
    "a/../b", "....//x", "$(x)", "a b", "LPT1", "%2e%2e%2f",
]  # fmt: skip


@pytest.mark.goal(id="R14")
def test_ids_are_safe_file_names(tmp_path):
    ids = safe_ids(NASTY)
    assert len({i.casefold() for i in ids}) == len(NASTY)
    for name in ids:
        assert (tmp_path / f"{name}.nii.gz").resolve().parent == tmp_path.resolve()
        (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == len(NASTY)


@pytest.mark.goal(id="R14")
@given(st.text(max_size=400))
def test_any_text_becomes_a_safe_id(text):
    safe = safe_id(text)
    assert 0 < len(safe) <= 100
    assert safe.isascii()
    assert not set(safe) & set("/\\\0: ")
    assert ".." not in safe
    assert safe[0] not in ".-"


# ---------------------------------------------------------------- splits


@pytest.mark.goal(id="R12")
@settings(max_examples=60, deadline=None)
@given(
    patients=st.lists(st.integers(0, 12), min_size=2, max_size=40).filter(lambda p: len(set(p)) > 1),
    val=st.floats(0.01, 0.5),
    test=st.floats(0, 0.45),
    seed=st.integers(0, 5),
)
def test_no_patient_leaks(patients, val, test, seed):
    cases = [Case(f"c{i}", {}, f"p{p}") for i, p in enumerate(patients)]
    done = assign_splits(cases, val_fraction=val, test_fraction=test, seed=seed)
    assert [c.id for c in done] == [c.id for c in cases]
    assert {c.split for c in done} >= {"train", "val"}
    assert len({(c.patient, c.split) for c in done}) == len(set(patients))
    back = assign_splits(cases[::-1], val_fraction=val, test_fraction=test, seed=seed)
    assert back[::-1] == done


def test_given_splits_stay():
    def make(splits):
        return [Case(f"c{i}", {}, f"p{i}", split) for i, split in enumerate(splits)]

    done = [c.split for c in assign_splits(make(["train"] * 6 + ["test"] * 3))]
    assert done[6:] == ["test"] * 3
    assert done[:6].count("val") == 1
    done = [c.split for c in assign_splits(make(["val", "train", None, None]))]
    assert done == ["val", "train", "train", "train"]
    done = [c.split for c in assign_splits(make([None] * 20), val_fraction=0.2, test_fraction=0.1)]
    assert (done.count("train"), done.count("val"), done.count("test")) == (14, 4, 2)
    assert [c.split for c in assign_splits(make([None] * 3), val_fraction=0, test_fraction=0)] == ["train"] * 3
    assert assign_splits(make([None]))[0].split == "train"  # one scan can be embedded; training asks for two patients
    with pytest.raises(ConfigError):
        assign_splits(make([None]), val_fraction=0.6, test_fraction=0.4)
    one, two = (assign_splits(make([None] * 50), seed=s) for s in (0, 1))
    assert one != two


# ---------------------------------------------------------------- slices, fingerprints, failures


def test_expand_slices(tmp_path):
    save_nifti(tmp_path / "v.nii.gz", values(4, 5, 10))
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "p.png")
    touch(tmp_path / "bad.nii.gz")
    cases, failures = expand_slices(read_cohort(tmp_path), range=(0.25, 0.75), step=2)
    assert [c.id for c in cases] == ["p", "v_z002", "v_z004", "v_z006"]
    assert [c.slice_index for c in cases] == [None, 2, 4, 6]
    assert {c.patient for c in cases} == {"p", "v"}
    assert cases[1].item()["slice"] == 2
    assert len(failures) == 1
    assert (failures[0].case_id, failures[0].file) == ("bad", "bad.nii.gz")
    volume = [c for c in read_cohort(tmp_path) if c.id == "v"]
    assert [c.id for c in expand_slices(volume, axis="sagittal")[0]] == ["v_x000", "v_x001", "v_x002", "v_x003"]
    assert len(expand_slices(volume, axis="coronal")[0]) == 5
    for wrong in ({"range": (0.5, 0.5)}, {"step": 0}, {"axis": "oblique"}, {"range": (-1, 1)}):
        with pytest.raises(ConfigError):
            expand_slices(volume, **wrong)


def test_a_header_that_a_2d_model_cannot_read_is_a_warning(tmp_path, caplog):
    for name in "ab":
        save_nifti(tmp_path / f"{name}.nii")
    save_nifti(tmp_path / "bad.nii", values(4, 5, 6, 2))
    assert [failure.case_id for failure in split_cohort(tmp_path, spatial_dims=2).failures] == ["bad"]
    (line,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert line.startswith("case bad skipped: bad.nii: a 4D file")


def test_slices_that_are_left_out_are_announced(tmp_path, caplog):
    for name in ("a", "b"):
        save_nifti(tmp_path / f"{name}.nii", values(4, 4, 10))
    with caplog.at_level(logging.INFO, logger="monai_diffae"):
        split_cohort(tmp_path, 2, val_fraction=0, test_fraction=0)
        split_cohort(tmp_path, 2, val_fraction=0, test_fraction=0, slice_range=(0.2, 0.8), slice_step=3)
        split_cohort(tmp_path, 3, val_fraction=0, test_fraction=0, slice_step=3)
    assert [record.getMessage() for record in caplog.records] == [
        "2 scans of 2 patients: 20 train, 0 val, 0 test images",
        "2 scans of 2 patients: 4 train, 0 val, 0 test images, from volumes with slice_range [0.2, 0.8] and "
        "slice_step 3",
        "2 scans of 2 patients: 2 train, 0 val, 0 test images",
    ]


def test_fingerprint(tmp_path):
    save_nifti(tmp_path / "a.nii")
    save_series(tmp_path / "ct")
    cases = read_cohort(tmp_path)
    assert fingerprint(cases) == fingerprint(cases[::-1])
    assert len(fingerprint(cases)) == 64
    before = fingerprint(cases)
    (tmp_path / "a.nii").write_bytes(b"other")
    assert fingerprint(cases) != before
    assert fingerprint([Case("x", {"image": tmp_path / "gone"}, "x")])


@pytest.mark.goal(id="R12")
@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_one_file_in_two_splits_by_a_link_is_refused(tmp_path, link):
    save_nifti(tmp_path / "a.nii")
    getattr(tmp_path / "b.nii", link)(tmp_path / "a.nii")
    table = tmp_path / "t.csv"
    table.write_text("image,split\na.nii,train\nb.nii,val\n")
    with pytest.raises(CohortError, match=r"'a' \(train\) and 'b' \(val\) are links to one file"):
        split_cohort(table, spatial_dims=3)
    table.write_text("image,split\na.nii,train\nb.nii,train\n")
    assert len(split_cohort(table, spatial_dims=3, val_fraction=0).cases) == 2


def test_no_cell_of_a_table_is_lost(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "b.png")
    table = tmp_path / "t.csv"
    table.write_text("image,finding,age\na.png,benign,41\n\nb.png,lung cancer, left lobe,52\n")
    assert "t.csv: line 4 has 4 cells, but there are 3 columns" in refusal(table)
    table.write_text("image,image,age\na.png,b.png,41\n")
    assert "two columns are called 'image'; rename one" in refusal(table)
    table.write_text('image,finding,age\na.png,"lung cancer, left lobe",41,,\n')  # Excel fills lines with empty cells
    (case,) = read_cohort(table)
    assert case.labels == {"finding": "lung cancer, left lobe", "age": 41}
    table.write_text("image,age,\na.png,41,\nb.png,52,5\n")  # 52,5 years, before a column that Excel has left empty
    assert "t.csv: line 3 has a value in a column without a name" in refusal(table)
    table.write_text(",image,age\n0,a.png,41\n1,b.png,52\n")  # the numbers of the rows, as pandas writes them
    assert [case.labels for case in read_cohort(table)] == [{"age": 41}, {"age": 52}]


def test_a_line_that_ends_early_is_named(tmp_path, caplog):
    touch(tmp_path / "a.png", tmp_path / "b.png")
    cut = table(tmp_path, "image,patient,split,age\na.png,Doe-1,train,41\nb.png,Do")
    assert [case.labels["age"] for case in read_cohort(cut)] == [41, None]
    assert caplog.messages == [
        "cohort.csv: line 3 has 2 cells, but there are 4 columns; the missing cells count as empty, so check that the "
        "table is complete"
    ]


def test_an_id_and_the_name_of_another_cases_file_are_not_confused(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "b.png")
    assert "the id 'b' occurs twice" in refusal(table(tmp_path, "id,image\nb,a.png\n,b.png\n"))
    assert "the id 'b' occurs twice" in refusal(table(tmp_path, "id,image\n,b.png\nb,a.png\n"))


def test_patients_called_na_count_as_one_with_a_warning(tmp_path, caplog):
    touch(*(tmp_path / f"{name}.png" for name in "abc"))
    cases = read_cohort(table(tmp_path, "image,patient\na.png,NA\nb.png,NA\nc.png,Doe\n"))
    assert [case.patient for case in cases] == ["NA", "NA", "Doe"]
    assert caplog.messages == [
        "cohort.csv: 2 cases have the patient 'NA', and count as one patient; leave the cell empty if their patients "
        "are unknown"
    ]


def test_failures_table(tmp_path):
    path = write_failures(tmp_path / "new/failures.csv", [Failure("c", "c.nii", 'c.nii: "odd", cut; copy it again')])
    assert path.read_text() == 'case_id,file,reason\nc,c.nii,"c.nii: ""odd"", cut; copy it again"\n'


# ---------------------------------------------------------------- real data


def test_real_radiographs_by_table():
    path = shared("cxr_pneumonia_224") / "labels.csv"
    cases = read_cohort(path, columns={"image": "file", "patient": "patient_key"})
    assert len(cases) == 2682
    assert cases[0].id == "IM-0115-0001"
    assert cases[0].labels == {"label": 0, "subtype": "normal"}
    assert read_scan(cases[0].images["image"], spatial_dims=2, channels=1).array.shape == (1, 224, 224)
    done = assign_splits(cases)
    assert len({(c.patient, c.split) for c in done}) == len({c.patient for c in done})


def test_real_folders():
    cases = read_cohort(shared("hippocampus_msd") / "images")
    assert len(cases) == 201
    assert cases[0].id == "hippocampus_001"
    assert read_cohort(shared("hippocampus_hcrop_dicom"))[0].id == "Study1_13_HCropVolume"


def test_no_private_tag_leaves_a_dicom_file(tmp_path):
    root = shared("dicom_mr_brain_pgbm003")
    cases = read_cohort(root)
    assert len(cases) == 2
    assert cases[0].patient == cases[1].patient
    folder = tmp_path / "cut"
    folder.mkdir()
    for file in sorted((root / "11-T1post-18670").iterdir())[:3]:
        (folder / file.name).write_bytes(file.read_bytes()[:-1000])
    _, failures = expand_slices(read_cohort(folder))
    with pytest.raises(ValueError, match="cut") as caught:
        read_scan(folder)
    everything = f"{cases}{[c.item() for c in cases]}{failures}{caught.value}{fingerprint(cases)}"
    for private in ("Dumbledore", "Albus", "'PGBM-003'", "19500101"):
        assert private not in everything


def test_a_folder_reached_twice_by_a_link_counts_once(tmp_path):
    (tmp_path / "data").mkdir()
    save_nifti(tmp_path / "data" / "a.nii")
    (tmp_path / "latest").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "self").symlink_to(tmp_path / "data")
    assert [c.id for c in read_cohort(tmp_path)] == ["a"]


def test_an_unknown_key_of_columns_is_named(tmp_path):
    with pytest.raises(ConfigError, match="columns: 'imaje' is unknown; use one of image, id, patient"):
        read_cohort(tmp_path, columns={"imaje": "file"})


@pytest.mark.parametrize(
    ("content", "columns", "advice"),
    [
        ("picture,age\na.png,41\n", {}, "set columns, e.g. image=picture (in a bundle run"),
        ("MRID,age\nsub-01,41\n", {}, "join it to its scans: monai-diffae list-scans FOLDER scans.csv --table"),
        ("image_id,age\nISIC_1,41\n", {}, "join it to its scans: monai-diffae list-scans FOLDER scans.csv --table"),
        ("image,subject_id\na.png,p1\n", {"patient": "subject"}, "set columns, e.g. patient=subject_id"),
    ],
)
def test_the_advice_about_columns_fits_the_table(tmp_path, content, columns, advice):
    touch(tmp_path / "a.png")
    assert advice in refusal(table(tmp_path, content), columns=columns)
