"""Splits keep patients together; volumes become slices; ids are unique and safe names of files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scan_files import save_nifti, values

from monai_diffae.data import read_cohort, write_scan
from monai_diffae.data.cases import Case, assign_splits, find_cases, safe_file_name, safe_id, safe_names
from monai_diffae.data.cohort_split import expand_slices, gather_slices, split_cohort
from monai_diffae.data.progress import Failure
from monai_diffae.errors import CohortError, ConfigError


@pytest.mark.goal(id="R14")
@given(st.text(max_size=400))
def test_any_text_becomes_a_safe_id(text):
    safe = safe_id(text)
    assert 0 < len(safe) <= 100
    assert safe.isascii()
    assert not set(safe) & set("/\\\0: ")
    assert ".." not in safe
    assert safe[0] not in ".-"


@pytest.mark.goal(id="R14")
@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_names_of_files_are_safe_and_as_unique_as_ids(first, second):
    names = [safe_file_name(first), safe_file_name(second)]
    assert all(safe_id(name) == name for name in names)
    assert (names[0] == names[1]) == (first == second)


def test_files_named_after_ids_with_a_suffix_have_it_once():
    ids = ["x.nii.gz", "y.png", "y.PNG", "z.dcm", ".png", "1.2.840"]
    names = safe_names(ids)[1]
    assert names[0] == "x"
    assert names[3:] == ["z", "png", "1.2.840"]
    assert len(set(names)) == len(ids)
    assert safe_file_name("x.nii.gz").startswith("x-")  # x may be another case


def cohort(*ids):
    return [Case(id, {"image": Path(f"{id}.nii")}, id) for id in ids]


def test_cases_are_found_by_id_or_name_of_file_in_the_order_of_the_ids_and_once():
    cases = [*cohort("a", "b", "c"), Case("benign (1)", {"image": Path("a.png")}, "p", file_name="benign_1")]
    assert [case.id for case in find_cases(cases, ["c", "a", "c"])] == ["c", "a"]
    assert find_cases(cases, ["benign (1)", "benign_1"]) == cases[3:]
    with pytest.raises(CohortError, match=r"the cohort has no 'benign \(2\)'; did you mean 'benign \(1\)'"):
        find_cases(cases, ["benign (2)"])


@pytest.mark.goal(id="R12")
@settings(max_examples=40, deadline=None)
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
    cases = [*make(["test", "train"]), Case("c2", {}, "p0")]  # another scan of the patient in test
    assert [c.split for c in assign_splits(cases, val_fraction=0)] == ["test", "train", "test"]
    done = [c.split for c in assign_splits(make([None] * 20), val_fraction=0.2, test_fraction=0.1)]
    assert (done.count("train"), done.count("val"), done.count("test")) == (14, 4, 2)
    assert [c.split for c in assign_splits(make([None] * 3), val_fraction=0, test_fraction=0)] == ["train"] * 3
    assert assign_splits(make([None]))[0].split == "train"  # one scan can be embedded; training asks for two patients
    with pytest.raises(ConfigError):
        assign_splits(make([None]), val_fraction=0.6, test_fraction=0.4)
    one, two = (assign_splits(make([None] * 50), seed=s) for s in (0, 1))
    assert one != two


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


def test_expand_slices(tmp_path):
    save_nifti(tmp_path / "v.nii.gz", values(4, 5, 10))
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "p.png")
    (tmp_path / "bad.nii.gz").write_bytes(b"x")
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


def slices(name, *indices):
    image = {"image": Path(f"{name}.nii")}
    return [Case(f"{name}_z{k:03d}", image, name, slice_index=k) for k in indices]


def test_a_volume_is_its_usable_slices_and_fails_once_if_it_has_none():
    bad_header = Failure("c", "c.nii", "c.nii: no scan")
    bad_slices = [Failure(f"a_z{k:03d}", "a.nii", f"reason {k}") for k in (4, 6)]
    bad_slices.append(Failure("b_z002", "b.nii", "empty"))
    volumes, failures = gather_slices([*slices("a", 4, 6), *slices("b", 2, 3)], [bad_header, *bad_slices])
    assert {name: [case.slice_index for case in each] for name, each in volumes.items()} == {"b": [3]}
    assert failures == [bad_header, Failure("a", "a.nii", "slice 4: reason 4")]


@pytest.mark.goal(id="R13")
def test_a_slice_may_not_have_the_id_of_another_case(tmp_path):
    volume = write_scan(tmp_path / "a.nii.gz", np.zeros((1, 2, 2, 3)))
    picture = write_scan(tmp_path / "a_z001.png", np.zeros((1, 4, 4)))
    cases = [Case("a", {"image": volume}, "a"), Case("a_z001", {"image": picture}, "p")]
    with pytest.raises(CohortError, match="the id 'a_z001' is that of a scan and of a slice of another scan"):
        expand_slices(cases)
