"""The command verify: verdicts, twins between splits, files and exit codes."""

import csv
import hashlib
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scan_files import save_nifti, values

from monai_diffae import list_scans, verify
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.errors import CohortError


def _volumes(folder, n=8, size=(20, 22, 24)):
    folder.mkdir()
    for number in range(n):
        rng = np.random.default_rng(number)
        save_nifti(folder / f"s{number}.nii.gz", rng.normal(100, 20, size).astype(np.float32))
    return folder


@pytest.fixture
def cohort(tmp_path):
    """Twelve volumes, six of them with a problem, in a table with splits; s7 is a copy of s0 in another split."""
    folder = _volumes(tmp_path / "scans")
    (folder / "s7.nii.gz").write_bytes((folder / "s0.nii.gz").read_bytes())
    cut = (folder / "s1.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(cut[: len(cut) // 2])
    holes = values(20, 22, 24)
    holes[3, 3, :5] = np.nan
    save_nifti(folder / "holes.nii.gz", holes)
    Image.fromarray(values(20, 22).astype(np.uint8)).save(folder / "flat.png")
    save_nifti(folder / "huge.nii.gz", values(20, 22, 24)[::-1], np.diag([1, 1, 9, 1]))
    rows = [(path.name, "test" if path.name.startswith("s7") else "train") for path in sorted(folder.iterdir())]
    pd.DataFrame([*rows, ("gone.nii", "train")], columns=["image", "split"]).to_csv(folder / "scans.csv", index=False)
    return folder / "scans.csv"


@pytest.mark.goal(id="R6")
def test_each_case_has_one_verdict_with_reason_and_remedy(cohort, tmp_path):
    """R6 and R12 of the reliability goals, before any training."""
    result = verify(cohort, tmp_path / "out")
    with open(tmp_path / "out" / "verify.csv", newline="") as stream:
        rows = {row["case_id"]: row for row in csv.DictReader(stream)}
    assert [*rows] == [case.id for case in read_cohort(cohort)]
    verdicts = {id: (row["verdict"], row["reason"], row["remedy"]) for id, row in rows.items()}
    assert verdicts["s2"] == ("ok", "", "")
    assert verdicts["cut"] == ("failed", "the compressed file ends early", "copy it again")
    assert verdicts["gone"] == ("failed", "there is no such file", "check the path")
    assert verdicts["holes"][1] == "it has voxels that are NaN or infinite"
    assert verdicts["flat"][:2] == ("failed", "a 2D image among volumes")
    assert verdicts["huge"][0] == "doubtful"
    assert "factor of two" in verdicts["huge"][1]
    assert rows["s2"]["size"] == "20 x 22 x 24"
    assert float(rows["s2"]["median"]) == pytest.approx(100, abs=5)
    assert rows["s2"]["sha256"] == hashlib.sha256((cohort.parent / "s2.nii.gz").read_bytes()).hexdigest()
    assert rows["s0"]["twins"] == rows["s7"]["twins"] == "group 1"
    lines = [*result.lines()]
    assert lines[0] == "13 scans: 8 ok, 1 doubtful, 4 failed"
    assert (
        "failed: it has voxels that are NaN or infinite: 1 (holes); repair it, or set nonfinite to a fill value"
        in lines
    )
    assert any("1 group of twins in different splits: s0 (split train) and s7 (split test)" in line for line in lines)
    assert result.incomplete == "4 of 13 scans cannot be used, and 1 group of twins is in different splits"
    assert json.loads(json.dumps(result.json()))["failed"] == 4
    assert Image.open(tmp_path / "out" / "overview.png").size[0] > 1000


def test_a_second_run_reads_only_what_has_changed(cohort, tmp_path, caplog):
    caplog.set_level("INFO", "monai_diffae")
    first = verify(cohort, tmp_path / "out", figure_format="svg")
    assert "reading 13 scans" in caplog.text
    caplog.clear()
    assert (tmp_path / "out" / "overview.svg").read_text().startswith("<?xml")
    save_nifti(cohort.parent / "holes.nii.gz", values(20, 22, 24)[:, ::-1])
    second = verify(cohort, tmp_path / "out")
    assert not (tmp_path / "out" / "overview.svg").exists()
    assert "reading" not in caplog.text  # for a single scan, nothing is said
    assert second.verification.count("failed") == 3
    assert second.verification.fingerprint != first.verification.fingerprint
    assert second.verification.twins.groups == first.verification.twins.groups
    moved = tmp_path / "moved"
    shutil.copytree(cohort.parent, moved)
    assert verify(moved / cohort.name).verification.fingerprint == second.verification.fingerprint


def test_headers_are_enough_for_geometry(cohort):
    result = verify(cohort, headers=True)
    failed = {checked.reading.case.id for checked in result.verification.cases if checked.status == "failed"}
    assert failed == {"gone", "flat"}  # cut and holes look well from outside
    assert "only headers were read" in [*result.lines()][-1]
    assert result.verification.fingerprint is None


def test_every_patient_and_file_in_two_splits_is_listed(tmp_path, run):
    folder = _volumes(tmp_path / "scans", 10)
    (folder / "s9.nii.gz").unlink()
    (folder / "s9.nii.gz").symlink_to(folder / "s8.nii.gz")
    splits = ["train", "test", "val", "train", "val", "train", "train", "train", "val", "test", "train", "val"]
    files = (0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 9)
    rows = enumerate(zip(files, "ppqqqrstuvwx", splits, strict=True))
    lines = "".join(f"c{n},s{file}.nii.gz,{patient},{split}\n" for n, (file, patient, split) in rows)
    (folder / "scans.csv").write_text(f"id,image,patient,split\n{lines}")
    code, printed, _ = run("verify", str(folder / "scans.csv"), str(tmp_path / "out"))
    assert code == 3
    table = pd.read_csv(tmp_path / "out" / "verify.csv", keep_default_na=False).set_index("case_id")
    patient, file = "its patient is in two splits", "its file is in two splits"
    twice = "another case has the same file"
    expected = [patient] * 5 + [""] + [twice] * 2 + [file] * 4
    assert table["kind"].tolist() == expected
    assert table["reason"][["c0", "c4"]].tolist() == [f"{patient}, as in c1 (test)", f"{patient}, as in c3 (train)"]
    assert (table["verdict"] == "failed").tolist() == [bool(kind) for kind in expected]
    assert f"failed: {patient}: 5 (c0, c1, c2, ...); put all scans of a patient into one split" in printed
    (folder / "scans.csv").write_text("id,image,patient,split\na,s0.nii.gz,p,train\nb,s1.nii.gz,p,test\n")
    assert verify(folder / "scans.csv", headers=True).verification.count("failed") == 2  # all of them


def test_pipes_and_devices_fail_and_formulas_are_doubtful(tmp_path):
    names = ["p.nii.gz", "p.mhd", "p.dcm", "p", "zero.nii", "s.nii.gz"]
    for name in names[:4]:
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    save_nifti(tmp_path / "s.nii.gz", values(8, 8, 8))
    assert len(list_scans(tmp_path, tmp_path / "all.csv").listing.cases) == 5  # p without a suffix is no scan
    rows = pd.DataFrame({"image": names, "id": list("abcdef"), "site": ["A", "-", "+ve", "-1", "B", '=HYPERLINK("x")']})
    rows.to_csv(tmp_path / "scans.csv", index=False)
    checked = {each.reading.case.id: each for each in verify(tmp_path / "scans.csv").verification.cases}
    assert [checked[id].status for id in "abcdef"] == ["failed"] * 5 + ["doubtful"]
    assert {checked[id].findings[0].reason for id in "abcde"} == {"it is a pipe, device or folder, not a file"}
    assert "formula" in checked["f"].findings[0].reason


def test_nothing_usable_is_one_line_and_still_a_table(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in "ab":
        (tmp_path / "scans" / f"{name}.nii").write_bytes(b"junk")
    with pytest.raises(CohortError, match="all 2 scans failed"):
        verify(tmp_path / "scans", tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "verify.csv")) == 2
    assert (tmp_path / "out" / "overview.png").is_file()


def test_a_line_about_several_scans_has_a_number_of_one(tmp_path):
    frames = [Image.fromarray(np.random.default_rng(k).integers(0, 255, (9, 9), np.uint8)) for k in range(4)]
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:3])
    line = "failed: it contains 3 pictures: 1 (moving); save each as a file of its own"
    assert line in [*verify(tmp_path).lines()]
