import os

import pytest

from monai_diffae.data.file_states import file_state


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(b"scan")
    return path


def test_size_time_and_name_count_and_the_folder_does_not(scan, tmp_path):
    state = file_state([scan])
    assert file_state([scan]) == state
    os.utime(scan, ns=(0, scan.stat().st_mtime_ns + 1))
    later = file_state([scan])
    assert later != state
    moved = (tmp_path / "elsewhere").mkdir() or scan.rename(tmp_path / "elsewhere" / "a.nii")
    assert file_state([moved]) == later
    assert file_state([moved.rename(moved.with_name("b.nii"))]) != later


def test_a_file_that_was_written_again_with_the_old_time_is_noticed_by_its_time_of_change(scan):
    states = [file_state([scan]), file_state([scan], change_times=True)]
    assert file_state([scan], change_times=True) == states[1]
    time_ns = scan.stat().st_mtime_ns
    scan.write_bytes(b"cans")
    while scan.stat().st_ctime_ns == time_ns:  # the file system's clock may be coarse
        scan.write_bytes(b"cans")
    os.utime(scan, ns=(0, time_ns))
    assert file_state([scan]) == states[0]
    assert file_state([scan], change_times=True) != states[1]


def test_a_missing_file_has_a_state_that_changes_when_it_appears(scan):
    absent = scan.with_name("b.nii")
    state = file_state([absent])
    assert file_state([absent]) == state
    absent.write_bytes(b"scan")
    assert file_state([absent]) != state


def test_all_files_of_a_folder_and_of_a_list_count(scan, tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    for name in "ab":
        (series / name).write_bytes(b"slice")
    states = [file_state([series])]
    (series / "c").write_bytes(b"slice")
    states.append(file_state([series]))
    states.append(file_state([tmp_path / "series#series=1.2"]))
    states.append(file_state([series, scan]))
    scan.write_bytes(b"longer")
    states.append(file_state([series, scan]))
    assert len(set(states)) == 5


@pytest.mark.parametrize(("header", "voxels"), [("a.hdr", "a.img"), ("a.hdr.gz", "a.img.gz"), ("a.mhd", "a.raw")])
def test_the_file_with_the_voxels_counts_too(header, voxels, tmp_path):
    (tmp_path / header).write_bytes(b"header")
    (tmp_path / voxels).write_bytes(b"voxels")
    state = file_state([tmp_path / header])
    (tmp_path / voxels).write_bytes(b"others of another size")
    assert file_state([tmp_path / header]) != state


@pytest.mark.parametrize("named", ["voxels.bin", "LIST\na.bin\nvoxels.bin", "voxels%d.bin 1 1 1"])
def test_the_voxels_that_an_mhd_header_names_count(tmp_path, named):
    header, voxels = tmp_path / "a.mhd", tmp_path / "voxels.bin"
    header.write_text(f"NDims = 3\nElementDataFile = {named}\n")
    states = {file_state([header])}
    for content in (b"scan", b"longer"):
        voxels.write_bytes(content)
        states.add(file_state([header]))
    assert len(states) == 3
    voxels.unlink()
    header.unlink()
    assert file_state([header]) not in states
